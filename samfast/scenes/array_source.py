"""A scene that is an array: in memory, memory-mapped, or a level of Zarr."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from samfast.errors import ImageError, shown
from samfast.scenes.georeference import Georeference
from samfast.scenes.source import Pixels, SceneInfo, SceneReadError, Window
from samfast.types import Size

RGBA = ("red", "green", "blue", "alpha")


class ArraySource:
    """A scene of one or several arrays, which are read by slicing.

    levels  arrays of the same axes, the largest first: NumPy's or Zarr's
    axes    what each axis is: "y" and "x" must be there, "c" or "s" are the bands, of all others
            the first plane is read
    """

    def __init__(
        self,
        levels: Sequence[Any],
        axes: str,
        name: str,
        *,
        colours: tuple[str, ...] = (),
        georeference: Georeference | None = None,
        notes: tuple[str, ...] = (),
        identity: str = "",
    ) -> None:
        if "y" not in axes or "x" not in axes or len(axes) != levels[0].ndim:
            raise ImageError(
                f"{name}: axes {axes!r} of {levels[0].ndim} dimensions; y and x needed"
            )
        self._levels, self._axes = list(levels), axes
        full = levels[0]
        height, width = (int(full.shape[axes.index(axis)]) for axis in "yx")
        self._band_axes = [axis for axis in axes if axis in "cs"]
        count = int(np.prod([full.shape[axes.index(axis)] for axis in self._band_axes] or [1]))
        dtype = np.dtype(full.dtype)
        if min(height, width) < 1 or dtype.kind not in "buif":
            raise ImageError(
                f"{name}: {full.shape} {dtype}; a scene has whole or floating-point numbers"
            )
        others = [axis for axis in axes if axis not in "yxcs" and full.shape[axes.index(axis)] > 1]
        if others:
            notes = (*notes, f"of the axes {', '.join(others)} the first plane is read")
        self.info = SceneInfo(
            name=name,
            size=(height, width),
            dtypes=(dtype.name,) * count,
            colours=colours,
            levels=tuple(height / level.shape[axes.index("y")] for level in levels),
            georeference=georeference or Georeference(),
            notes=notes,
            identity=identity,
        )

    def read(self, bands: tuple[int, ...], window: Window, shape: Size | None = None) -> Pixels:
        """As `Source.read`."""
        x0, y0, x1, y1 = window
        level = self._level_for(window, shape)
        h, w = (level.shape[self._axes.index(axis)] for axis in "yx")
        height, width = self.info.size
        top, left = int(y0 * h / height), int(x0 * w / width)
        bottom, right = max(top + 1, round(y1 * h / height)), max(left + 1, round(x1 * w / width))
        index: list[Any] = []
        for axis in self._axes:
            if axis == "y":
                index.append(slice(top, min(bottom, h)))
            elif axis == "x":
                index.append(slice(left, min(right, w)))
            else:
                index.append(slice(None) if axis in "cs" else 0)
        try:
            part = np.asarray(level[tuple(index)])
        except Exception as error:  # zarr and its codecs raise errors of many kinds
            raise SceneReadError(
                f"{self.info.name}: the window {window} cannot be read ("
                f"{' '.join(str(error).split()) or type(error).__name__})"
            ) from error
        kept = [axis for axis in self._axes if axis in "yxcs"]
        part = part.transpose([kept.index(axis) for axis in ["y", "x", *self._band_axes]])
        part = part.reshape(*part.shape[:2], -1)[:, :, list(bands)]
        if shape is not None and part.shape[:2] != shape:
            rows = (np.arange(shape[0]) * part.shape[0]) // shape[0]
            columns = (np.arange(shape[1]) * part.shape[1]) // shape[1]
            part = part[rows[:, None], columns[None, :]]
        if part.dtype.kind == "f":
            valid = np.isfinite(part).all(2)
        else:
            valid = np.ones(part.shape[:2], dtype=np.bool_)
        return Pixels(part, valid)

    def _level_for(self, window: Window, shape: Size | None) -> Any:
        """The smallest level that still has as many pixels as asked for."""
        wanted = 1.0 if shape is None else (window[3] - window[1]) / shape[0]
        pairs = zip(self._levels, self.info.levels, strict=True)
        fitting = [(level, scale) for level, scale in pairs if scale <= max(1.0, wanted) * 1.001]
        return max(fitting, key=lambda each: each[1])[0]

    def close(self) -> None:
        """Nothing is held open but what the caller gave."""


def of_array(array: Any, name: str) -> ArraySource:
    """A scene of an (H, W) or (H, W, C) array, memory-mapped ones included."""
    if getattr(array, "ndim", None) not in (2, 3):
        raise ImageError(f"{name}: {shown(array)}; a scene is (H, W) or (H, W, C)")
    sample = np.ascontiguousarray(array[:: max(1, len(array) // 64)])
    digest = hashlib.sha256(sample.tobytes()).hexdigest()
    axes = "yx" if array.ndim == 2 else "yxs"
    colours = RGBA if array.ndim == 3 and array.shape[2] in (3, 4) else ()
    return ArraySource([array], axes, name, colours=colours[: len(array.T)], identity=digest)
