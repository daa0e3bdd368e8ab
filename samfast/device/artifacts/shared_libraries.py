"""The shared libraries that torch compiles for a CPU: its own bundle holds nothing but their
source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from samfast.atomic_files import atomic_write

SUFFIX = ".so"


def since(moment: float) -> dict[str, bytes]:
    """The libraries that torch has compiled since then (`time.time`), by their places in its
    cache.
    """
    found = {}
    folder = _folder()
    for path in sorted(folder.glob(f"*/*{SUFFIX}")):
        if path.stat().st_mtime >= moment:
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def restore(libraries: Mapping[str, bytes]) -> None:
    """Put libraries where torch looks for them; those that are there already stay."""
    folder = _folder()
    for name, content in libraries.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or place.suffix != SUFFIX:
            raise ValueError(f"{name!r} is no place of a library")
        path = folder / place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content)


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())
