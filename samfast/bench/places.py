"""Which line of samfast, or of its user, is behind a stack of calls."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import samfast

_PACKAGE = Path(samfast.__file__).parent
_LIBRARY = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
)


class Frame(NamedTuple):
    """A line that was being run."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{_shown(self.file)}:{self.line} in {self.function}"


def behind(frames: Iterable[Frame]) -> Frame | None:
    """The innermost line of samfast, or of whoever uses it; None where there is only PyTorch's and
    Python's own.

    frames  the innermost first
    """
    return next((frame for frame in frames if _own(frame.file)), None)


def _own(file: str) -> bool:
    if _in_package(file):
        return True
    path = Path(file)
    if path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not os.path.realpath(file).startswith(_LIBRARY)


def _in_package(file: str) -> bool:
    return Path(file).is_relative_to(_PACKAGE)


def _shown(file: str) -> str:
    """Short: from samfast/ on, or from the current folder on; else as it is."""
    path = Path(file)
    for root in (_PACKAGE.parent if _in_package(file) else Path.cwd(), Path.cwd()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return file
