"""The image files that a command line names, and the names of their results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from samfast.cli.console import CommandLineError, Console, printable

_ENDINGS = "avif bmp dib gif j2k jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings of images in a directory. A file named on the command line may have any ending."""


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    stem    of its results' file names; with subdirectories where these are searched
    name    its path below the folder that all images are in, with slashes, as data sets have it
    number  from 1, in the order of the command line
    """

    path: Path
    stem: str
    name: str
    number: int


def plan(
    arguments: Sequence[str],
    out: Path,
    targets: Sequence[str],
    console: Console,
    *,
    recursive: bool = False,
) -> tuple[list[ImageFile], int]:
    """The distinct images that arguments name, and the number of arguments that name none.

    targets    names of results, with {} for the stem: ("{}.json", "labels/{}.txt")
    recursive  search subdirectories too, but not `out`; stems then begin with the subdirectory

    Images of the same stem (from two directories, or a.jpg beside a.png) get numbers: a, a-2.
    Prints a message for each of them and for each argument that names no image.

    CommandLineError if a result would overwrite an input.
    """
    paths, failed = _expand(arguments, console, out if recursive else None)
    inputs = {os.path.realpath(path): path for path in paths}
    stems = _with_stems(paths, targets, console)
    names = _names(list(paths), arguments)
    files = [
        ImageFile(path, stem, name, number)
        for number, (path, stem, name) in enumerate(zip(paths, stems, names, strict=True), start=1)
    ]
    for file in files:
        for target in (out / target.format(file.stem) for target in targets):
            overwritten = inputs.get(os.path.realpath(target))
            if overwritten is not None:
                raise CommandLineError(
                    f"{target} would overwrite the input {overwritten} (choose another directory "
                    "with --out)"
                )
    return files, failed


def photos(arguments: Sequence[str], console: Console, if_none: str) -> tuple[list[Path], int]:
    """The distinct image files that arguments name, and the number of arguments that name none.

    Prints a message for each of the latter; CommandLineError, with `if_none`, without any file.
    """
    paths, failed = _expand(arguments, console, None)
    if not paths:
        raise CommandLineError(f"{if_none} (give files, directories or globs of images)")
    return list(paths), failed


def _expand(
    arguments: Sequence[str], console: Console, out: Path | None
) -> tuple[dict[Path, str], int]:
    """Each distinct path and its stem before it is numbered, and how many arguments name none.

    out  the directory to leave out where subdirectories are searched; None: they are not
    """
    stems: dict[str, tuple[Path, str]] = {}
    failed = 0
    for argument in arguments:
        try:
            for path in _matches(argument, out):
                inside = out is not None and os.path.isdir(argument)
                place = path.relative_to(argument) if inside else Path(path.name)
                stem = place.with_name(path.stem).as_posix()
                stems.setdefault(os.path.realpath(path), (path, stem))
        except FileNotFoundError as error:
            failed += 1
            console.warn(f"{printable(argument)}: {error}")
    return dict(stems.values()), failed


def _matches(argument: str, out: Path | None) -> list[Path]:
    """The files that an argument names; FileNotFoundError, with the reason, if it names none."""
    path = Path(argument)
    if path.is_dir():
        try:
            entries = sorted(path.iterdir()) if out is None else list(_below(path, out))
        except OSError as error:
            raise FileNotFoundError(
                f"the directory cannot be read: {error.strerror} (check its permissions)"
            ) from error
        files = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.name.startswith(".")]
        reason = "no image in this directory"
        if out is None:
            reason += " (--recursive searches its subdirectories)"
    elif os.path.lexists(path):
        return [path]
    elif glob.has_magic(argument):
        matches = map(Path, sorted(glob.glob(argument, recursive=True)))
        files = [match for match in matches if not match.is_dir()]
        reason = "no file matches (check the pattern)"
    else:
        files, reason = [], "no such file or directory (check the path)"
    if not files:
        raise FileNotFoundError(reason)
    return files


def _below(folder: Path, out: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, but of `out` and hidden ones, in order."""

    def unreadable(error: OSError) -> None:
        raise error

    results = os.path.realpath(out)
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(Path(parent, name)) != results
        )
        yield from (Path(parent, name) for name in sorted(files))


def _names(paths: Sequence[Path], arguments: Sequence[str]) -> list[str]:
    """Each path below the folder of the command line, or else below the one that holds all."""
    places = [os.path.abspath(path) for path in paths]
    if len(arguments) == 1 and os.path.isdir(arguments[0]):
        root = os.path.abspath(arguments[0])
    else:
        try:
            root = os.path.commonpath([os.path.dirname(place) for place in places])
        except ValueError:  # no paths; or on several Windows drives
            return [Path(place).as_posix() for place in places]
    return [Path(os.path.relpath(place, root)).as_posix() for place in places]


def _with_stems(paths: dict[Path, str], targets: Sequence[str], console: Console) -> list[str]:
    """For each path a stem such that no two results have one name; prints changed stems."""
    # Names are compared without case: on some file systems A.json and a.json are one file.
    plain = {key for stem in paths.values() for key in _keys(stem, targets)}
    taken: dict[str, Path] = {}
    stems = []
    for path, first_choice in paths.items():
        stem = next(
            stem
            for stem in chain([first_choice], (f"{first_choice}-{number}" for number in count(2)))
            # A numbered stem must not take the plain stem of a later image either.
            if not any(
                key in taken or (stem != first_choice and key in plain)
                for key in _keys(stem, targets)
            )
        )
        if stem != first_choice:
            first = next(taken[key] for key in _keys(first_choice, targets) if key in taken)
            console.warn(
                printable(
                    f"{path}: its results are named {stem}.*, because {first} has {first_choice}.*"
                )
            )
        taken.update(dict.fromkeys(_keys(stem, targets), path))
        stems.append(stem)
    return stems


def _keys(stem: str, targets: Sequence[str]) -> list[str]:
    return [target.format(stem).casefold() for target in targets]
