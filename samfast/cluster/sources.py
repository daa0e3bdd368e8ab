"""A folder, glob, list, URL, tar or Parquet file -> the images that it has, in a fixed order.

Images are listed once, before any work, so that the shards of a source are known and a changed
source is noticed. Folders and globs are sorted by name; the images inside tar and Parquet files
keep their order.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfast.cluster import containers
from samfast.cluster.shards import Entry, key_of
from samfast.errors import (
    DatasetError,
    ImageError,
    MissingExtraError,
    SamfastError,
    SourceGoneError,
    one_line,
)

_ENDINGS = "avif bmp dib gif j2k jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings of images in folders, globs and tar files. A list may name files of any ending."""

TAR, PARQUET = ".tar", ".parquet"

LIST_SUFFIXES = frozenset((".txt", ".lst"))
"""Endings of files that list images, a path or URL in each line."""

READ_ATTEMPTS = 3
"""How often a file is read before its error counts: disks and networks have moments."""

RETRY_SECONDS = 0.2
"""Before the second attempt; ten times as long before the third."""


@dataclass(frozen=True)
class Reader:
    """Reads the entries of a source. Small, and can be pickled.

    root    absolute folder or URL below which entries without a file of their own lie
    listed  whether the place itself said that the entries are there, so that a missing one means
            that the source has changed; a list written by a user says nothing of the kind
    """

    root: str
    listed: bool

    def place(self, entry: Entry) -> str:
        """The path or URL of the file that holds an entry."""
        return entry.file or f"{self.root}/{entry.key}"

    def read(self, entry: Entry) -> bytes:
        """The image file of an entry, as it was encoded.

        Raises ImageError if it cannot be read, SourceGoneError if it is missing where it was
        listed, or its disk or network fails again and again, DatasetError for a damaged Parquet
        file.
        """
        for attempt in range(READ_ATTEMPTS):
            try:
                return self._read(entry)
            except FileNotFoundError as error:
                self._missing(entry, error)
            except (PermissionError, IsADirectoryError) as error:
                reason = error.strerror or one_line(error)
                raise ImageError(f"{entry.key}: cannot be read: {reason}") from error
            except SamfastError:
                raise
            except Exception as error:  # file systems of fsspec have errors of their own
                if attempt + 1 == READ_ATTEMPTS:
                    self._failed(entry, error)
            time.sleep(RETRY_SECONDS * 10**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, entry: Entry) -> bytes:
        place = self.place(entry)
        if entry.start < 0:
            return _whole(place)
        if containers.is_parquet(place):
            return containers.parquet_image(place, entry.start)
        return _part(place, entry.start, entry.size)

    def _failed(self, entry: Entry, error: Exception) -> None:
        # A server's answer concerns one URL of a list; an error of the system concerns them all.
        if not self.listed and not isinstance(error, OSError):
            raise ImageError(f"{entry.key}: cannot be read: {one_line(error)}") from error
        raise SourceGoneError(
            f"{self.place(entry)}: cannot be read: {one_line(error)}; see that the source can be "
            "reached and run again"
        ) from error

    def _missing(self, entry: Entry, error: FileNotFoundError) -> None:
        if self.listed or entry.start >= 0:
            raise SourceGoneError(
                f"{self.place(entry)}: was listed and is gone; put the source back and run again"
            ) from error
        raise ImageError(f"{entry.key}: no such file; check the list") from error


@dataclass(frozen=True)
class Source:
    """What there is to do.

    text    the source as the user named it
    digest  changes with the names, sizes and order of the entries
    notes   what a user should know of the listing, one sentence each
    """

    text: str
    entries: Sequence[Entry]
    reader: Reader
    notes: Sequence[str] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self.entries))


def open_source(text: str, *, leave_out: str | None = None) -> Source:
    """List a source.

    text       a folder (with its subfolders), a glob, a .txt or .lst file with a path or URL in
               each line, a .tar or .parquet file, an image, or a URL of fsspec of one of these
    leave_out  a folder below the source that is none of it: that of the results

    Raises DatasetError if it has no images, MissingExtraError without what reads it.

    >>> source = open_source("photos")
    >>> source.reader.read(source.entries[0])
    """
    remote = "://" in text and not text.startswith("file://")
    try:
        return _open_source(text, remote, leave_out)
    except SamfastError:
        raise
    except Exception as error:  # file systems of fsspec raise classes of many libraries
        if not (remote or isinstance(error, OSError)):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DatasetError(f"{text}: cannot be listed: {reason}; check the source") from error


def _open_source(text: str, remote: bool, leave_out: str | None) -> Source:
    if remote:
        root, files = _remote_files(text, leave_out)
    else:
        root, files = _local_files(text.removeprefix("file://"), leave_out)
    if files is None:
        entries, notes = _listed_in(root)
        if not entries:
            raise DatasetError(f"{text}: the list is empty; give a path or URL in each line")
        return Source(text, entries, Reader("", listed=False), notes)
    entries = _expand(root, files)
    if not entries:
        raise DatasetError(
            f"{text}: there are no images in it; name a folder, glob, list, .tar or .parquet"
        )
    _check_unique(text, entries)
    return Source(text, entries, Reader(root, listed=True))


Files = list[tuple[str, int]] | None
"""Names below a root and their sizes, sorted; None: the root is a list of images."""


def _local_files(text: str, leave_out: str | None) -> tuple[str, Files]:
    """The root, and the files below it."""
    path = Path(text).expanduser()
    if path.is_dir():
        root = os.path.abspath(path)
        return root, sorted(_below(root, leave_out))
    if path.exists():
        place = os.path.abspath(path)
        if _suffix(place) in LIST_SUFFIXES:
            return place, None
        return os.path.dirname(place), [(os.path.basename(place), path.stat().st_size)]
    if not glob.has_magic(text):
        raise DatasetError(f"{text}: no such file or folder; check the path")
    pattern = os.path.abspath(os.path.expanduser(text)).replace(os.sep, "/")
    matches = map(os.path.normpath, glob.iglob(pattern, recursive=True))
    results = None if leave_out is None else os.path.join(os.path.abspath(leave_out), "")
    paths = [
        each
        for each in matches
        if os.path.isfile(each) and not (results and each.startswith(results))
    ]
    if not paths:
        raise DatasetError(f"{text}: no file matches; check the pattern")
    root = _fixed_part(pattern)
    return root, sorted((_key(each, root), os.path.getsize(each)) for each in paths)


def _below(folder: str, leave_out: str | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The files below a folder but hidden ones, with slashes, and their sizes."""
    results = None if leave_out is None else os.path.realpath(leave_out)
    with os.scandir(folder) as each:
        for item in each:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                # A link to a folder may lead back to it.
                if not item.is_symlink() and os.path.realpath(item.path) != results:
                    yield from _below(item.path, leave_out, f"{prefix}{item.name}/")
            elif item.is_file():
                yield f"{prefix}{item.name}", item.stat().st_size


def _remote_files(text: str, leave_out: str | None) -> tuple[str, Files]:
    """The root as a URL, and the files below it."""
    system, path = _file_system(text)
    suffix = _suffix(path)
    if suffix in LIST_SUFFIXES:
        return text, None
    if glob.has_magic(path):
        listing = system.glob(path, detail=True)
        root = _fixed_part(path)
    elif suffix in IMAGE_SUFFIXES or suffix in (TAR, PARQUET):
        listing = {path: system.info(path)}
        root = path.rpartition("/")[0]
    else:
        listing = system.find(path, detail=True)
        root = path.rstrip("/")
    same_system = (leave_out or "").startswith(text.partition("://")[0] + "://")
    results = system._strip_protocol(leave_out).rstrip("/") + "/" if same_system else None
    files = [
        (_key(system._strip_protocol(name), root), int(details.get("size") or -1))
        for name, details in listing.items()
        if details.get("type") != "directory" and not (results and name.startswith(results))
    ]
    files = [(key, size) for key, size in files if "/." not in f"/{key}"]
    return system.unstrip_protocol(root), sorted(files)


def _expand(root: str, files: Sequence[tuple[str, int]]) -> list[Entry]:
    """The images among files; if there are none, those in tar and Parquet files."""
    images = [
        Entry(key := key_of(name), size, "" if key == name else f"{root}/{name}")
        for name, size in files
        if _suffix(name) in IMAGE_SUFFIXES
    ]
    if images:
        return images
    entries: list[Entry] = []
    for name, size in files:
        suffix = _suffix(name)
        place = f"{root}/{name}"
        if suffix == TAR:
            entries += containers.tar_entries(place, name, IMAGE_SUFFIXES)
        elif suffix == PARQUET:
            entries += containers.parquet_entries(place, name, size)
    # A file that was named itself is an image whatever it is called.
    return entries or ([Entry(*files[0])] if len(files) == 1 else [])


def _listed_in(place: str) -> tuple[list[Entry], Sequence[str]]:
    """The images that a list names, each once; relative paths begin at the list's folder."""
    try:
        lines = _whole(place).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{place}: not UTF-8 text; give a path or URL in each line") from error
    names = [line.strip() for line in lines if line.strip()]
    folder = place.rpartition("/")[0] if "://" in place else os.path.dirname(place)
    distinct = dict.fromkeys(names)
    entries = [
        Entry(name, file=name if "://" in name or os.path.isabs(name) else f"{folder}/{name}")
        for name in distinct
    ]
    repeated = len(names) - len(distinct)
    return entries, (f"{repeated} lines repeat an image, which is done once",) if repeated else ()


def _check_unique(text: str, entries: Sequence[Entry]) -> None:
    if len({entry.key for entry in entries}) < len(entries):
        (twice, _), *_ = Counter(entry.key for entry in entries).most_common(1)
        raise DatasetError(f"{text}: two images are called {twice}; rename one")


def _digest(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.key}\0{entry.size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _fixed_part(pattern: str) -> str:
    """The folders of a pattern before the first that has magic in it."""
    parts: list[str] = []
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return "/".join(parts)


def _suffix(name: str) -> str:
    """The ending of a file's name, in small letters; pathlib takes ten times as long."""
    return os.path.splitext(name)[1].lower()


def _key(place: str, root: str) -> str:
    return place.replace(os.sep, "/").removeprefix(root).lstrip("/")


def _whole(place: str) -> bytes:
    """The bytes of a file."""
    if "://" not in place:
        with open(place, "rb") as file:
            return file.read()
    system, path = _file_system(place)
    data: bytes = system.cat_file(path)
    return data


def _part(place: str, start: int, size: int) -> bytes:
    """Bytes of a file; OSError if it has fewer."""
    if "://" not in place:
        with open(place, "rb") as file:
            file.seek(start)
            data = file.read(size)
    else:
        system, path = _file_system(place)
        data = system.cat_file(path, start=start, end=start + size)
    if len(data) != size:
        raise OSError(f"it ends after {start + len(data)} bytes, and {start + size} were there")
    return data


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises MissingExtraError, DatasetError."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError(f"{url} needs fsspec: pip install 'samfast[cluster]'") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{url}: {one_line(error)}") from error
    return system, path
