"""What is read from a scene, whatever file it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samfast.scenes.georeference import Georeference
from samfast.types import Size

Window = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels of the scene's full resolution, inside the scene."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """A window of a scene at one of its levels.

    values  (H, W, C), the bands that were asked for, in the file's dtype
    valid   (H, W) bool: False where there is no data
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class SceneInfo:
    """What a scene is.

    name       names it in messages
    size       (H, W) in pixels of its full resolution
    dtypes     NumPy's name of the dtype of each band
    colours    the band's meaning where the file says so: "red", "green", "blue", "gray", "alpha"
    levels     how many times smaller each stored level is, 1 first
    notes      what was chosen or left out on opening, one sentence each
    identity   what tells this scene from another one under the same name, for resuming
    palette    (256, 3) uint8 colours of the values of a single band, or None
    """

    name: str
    size: Size
    dtypes: tuple[str, ...]
    colours: tuple[str, ...]
    levels: tuple[float, ...]
    georeference: Georeference
    notes: tuple[str, ...] = ()
    identity: str = ""
    palette: NDArray[np.uint8] | None = None


class Source(Protocol):
    """A scene that is read window by window."""

    info: SceneInfo

    def read(self, bands: tuple[int, ...], window: Window, shape: Size | None = None) -> Pixels:
        """The window's bands, counted from 0.

        shape  (h, w) to read it in, from the stored levels, by nearest neighbour; None: as it is

        Raises SceneReadError, in one line, where the file cannot be read. May be called from one
        thread at a time.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class SceneReadError(Exception):
    """A window of a scene could not be read; the other ones may be."""
