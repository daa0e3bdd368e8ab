"""The shared libraries that torch compiles for a CPU; torch's bundle holds only their source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from samfast.atomic_files import atomic_write

SUFFIX = ".so"


def since(moment: float) -> dict[str, bytes]:
    """The libraries compiled since a moment (`time.time`), by their paths in torch's cache."""
    folder = _folder()
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob(f"*/*{SUFFIX}"))
        if path.stat().st_mtime >= moment
    }


def restore(libraries: Mapping[str, bytes]) -> None:
    """Put libraries into torch's cache, except those that it already holds.

    Raises ValueError for a path that is not of a library in that cache.
    """
    folder = _folder()
    for name, content in libraries.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or relative.suffix != SUFFIX:
            raise ValueError(f"{name!r} is no path of a library")
        path = folder / relative
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content)


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())
