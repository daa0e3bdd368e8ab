"""The folder or URL of a run's results, in which a file is whole or absent."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from samfast.errors import OutputError, one_line
from samfast.serve.store_backends import backend_of


class Destination:
    """A place for files. Can be pickled.

    url  a folder, or a URL that fsspec understands

    Any method raises OutputError, naming the file, where the system refuses.

    >>> Destination("results").write("masks/00000000.parquet", data)
    """

    def __init__(self, url: str) -> None:
        local = "://" not in url or url.startswith("file://")
        self.folder = (
            Path(os.path.abspath(Path(url.removeprefix("file://")).expanduser())) if local else None
        )
        self.url = url.rstrip("/") if self.folder is None else str(self.folder)
        self._backend: Any = backend_of(self.url)

    def __reduce__(self) -> tuple[type[Destination], tuple[str]]:
        return Destination, (self.url,)

    def below(self, name: str) -> str:
        """The folder or URL of that name in this place."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None if there is none."""
        with self._telling(name, "read"):
            data: bytes | None = self._backend.read(name)
        return data

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read, of which not all need be read. FileNotFoundError if there is none."""
        if self.folder is not None:
            with open(self.folder / name, "rb") as file:
                yield file
            return
        data = self.read(name)
        if data is None:
            raise FileNotFoundError(f"{self.below(name)}: no such file")
        yield io.BytesIO(data)

    def write(self, name: str, data: bytes) -> None:
        """Make a file appear, whole, in place of an older one."""
        with self._telling(name, "written"):
            self._backend.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        with self._telling(name, "removed"):
            self._backend.remove(name)

    def sizes(self, folder: str) -> dict[str, int]:
        """The names below a folder of the files in it, and their bytes; temporary ones left out."""
        with self._telling(folder, "listed"):
            sizes = self._local_sizes(folder) if self.folder else self._backend.sizes(folder)
        return {name: size for name, size in sizes.items() if not name.endswith(".tmp")}

    def _local_sizes(self, folder: str) -> dict[str, int]:
        assert self.folder is not None
        try:
            with os.scandir(self.folder / folder) as items:
                return {item.name: item.stat().st_size for item in items if item.is_file()}
        except FileNotFoundError:
            return {}

    @contextlib.contextmanager
    def _telling(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise OutputError(f"{self.below(name)}: cannot be {done}: {reason}") from error
