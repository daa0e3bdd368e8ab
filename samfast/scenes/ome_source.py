"""OME-TIFF and OME-Zarr: microscopes' images, in levels, with named axes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from samfast.errors import ImageError, MissingExtraError
from samfast.scenes.array_source import RGBA, ArraySource


class _OpenFile(ArraySource):
    """An ArraySource that closes the file it is read from."""

    file: Any = None

    def close(self) -> None:
        self.file.close()


def open_ome_tiff(path: str) -> ArraySource:
    """The first series of an OME-TIFF, with its pyramid.

    Raises ImageError, naming the file, if it cannot be opened.
    """
    try:
        import tifffile
        import zarr
    except ImportError as error:
        raise _missing("OME-TIFF", error) from error
    try:
        file = tifffile.TiffFile(path)
        series = file.series[0]
        levels = [
            zarr.open_array(series.aszarr(level=level), mode="r")
            for level in range(len(series.levels))
        ]
    except Exception as error:  # tifffile raises errors of many kinds
        raise ImageError(f"{path}: cannot be opened ({_one_line(error)})") from error
    more = len(file.series) - 1
    notes = (f"the first of its {more + 1} series is read",) if more else ()
    axes = _known_axes(series.axes.lower())
    colours = RGBA[:3] if series.axes.endswith("S") and series.shape[-1] >= 3 else ()
    source = _OpenFile(levels, axes, path, colours=colours, notes=notes, identity=_stamp(path))
    source.file = file
    return source


def open_ome_zarr(path: str) -> ArraySource:
    """The first multiscale image of an OME-Zarr group (0.4 or 0.5).

    Raises ImageError, naming the path, if it is no such group.
    """
    try:
        import zarr
    except ImportError as error:
        raise _missing("OME-Zarr", error) from error
    try:
        group = zarr.open_group(path, mode="r")
        attributes: Any = dict(group.attrs)
        multiscales = attributes.get("ome", attributes).get("multiscales")
        if not multiscales:
            raise ImageError(
                f"{path}: a Zarr group without multiscales; name the group of an OME-Zarr image"
            )
        first = multiscales[0]
        levels: Sequence[Any] = [group[each["path"]] for each in first["datasets"]]
        axes = "".join(a["name"] if isinstance(a, dict) else a for a in first.get("axes", "tczyx"))
    except ImageError:
        raise
    except Exception as error:  # zarr and its stores raise errors of many kinds
        raise ImageError(f"{path}: not an OME-Zarr image ({_one_line(error)})") from error
    return ArraySource(levels, axes.lower(), path, identity=_stamp(path) + str(levels[0].shape))


def _known_axes(axes: str) -> str:
    """tifffile's letters; what is neither row, column, channel nor sample is another axis."""
    return "".join(axis if axis in "yxcs" else "z" for axis in axes)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""  # a URL
    return f"{status.st_size} {status.st_mtime_ns}"


def _missing(kind: str, error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"{kind} needs {error.name}, which is not installed; pip install 'samfast[large]'"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
