"""A scene that GDAL reads: GeoTIFF, COG, BigTIFF, JPEG, PNG, VRT, files on a server, and more."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import numpy as np

from samfast.errors import ImageError, MissingExtraError
from samfast.scenes.georeference import IDENTITY, Affine, Georeference
from samfast.scenes.source import Pixels, SceneInfo, SceneReadError, Window
from samfast.types import Size

CACHE_BYTES = 64 << 20
"""GDAL's cache of decoded blocks, for the rows of tiled files that two rows of tiles share."""

STRIP_ROWS = 2560
"""Rows of a file without inner tiles that are kept decoded, so that a row of tiles decodes each
strip once: two and a half tiles, which the cache of such a file may exceed CACHE_BYTES for."""

REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_TIMEOUT": "30",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
"""GDAL's settings for files on a server: no search for files beside them, which costs requests, and
three more tries, a second apart, of what fails.
"""


class RasterSource:
    """A file, or a URL, as `rasterio.open` takes it.

    nodata  a value that means no data, besides what the file says
    """

    def __init__(self, path: str, nodata: float | None = None) -> None:
        try:
            import rasterio
            from rasterio.errors import RasterioError
        except ImportError as error:
            raise MissingExtraError(
                "scenes need rasterio, which is not installed; pip install 'samfast[large]'"
            ) from error
        import warnings

        self._errors, self._nodata = (RasterioError, OSError, ValueError), nodata
        settings = REMOTE if "://" in path else {}
        self._environment = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **settings)
        try:
            with self._environment, warnings.catch_warnings():
                # That a file is not georeferenced is one of the notes.
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file: Any = rasterio.open(path)
                self._check(path)
                self.info = self._describe(path)
        except self._errors as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{path}: cannot be opened ({_one_line(error)})") from error
        height, width = self.info.size
        if self._file.block_shapes[0][1] == width and height > self._file.block_shapes[0][0]:
            row = width * sum(np.dtype(dtype).itemsize for dtype in self.info.dtypes)
            cache = max(CACHE_BYTES, STRIP_ROWS * row)
            self._environment = rasterio.Env(GDAL_CACHEMAX=cache, **settings)

    def _check(self, path: str) -> None:
        file = self._file
        if file.count == 0:
            parts = ", ".join(file.subdatasets[:3])
            hint = f"; name one of its parts: {parts}" if parts else ""
            raise ImageError(f"{path}: has no bands{hint}")
        complex_bands = [i for i, dtype in enumerate(file.dtypes, 1) if "complex" in dtype]
        if complex_bands:
            raise ImageError(
                f"{path}: band {complex_bands[0]} holds complex numbers; write their magnitude to "
                "a file first"
            )

    def _describe(self, path: str) -> SceneInfo:
        from rasterio.enums import ColorInterp

        file = self._file
        georeference, notes = self._georeference()
        names = {
            ColorInterp.red: "red",
            ColorInterp.green: "green",
            ColorInterp.blue: "blue",
            ColorInterp.alpha: "alpha",
            ColorInterp.gray: "gray",
        }
        palette = None
        if file.count == 1 and file.colorinterp[0] == ColorInterp.palette:
            palette = np.zeros((256, 3), dtype=np.uint8)
            for value, colour in file.colormap(1).items():
                if value < 256:
                    palette[value] = colour[:3]
        overviews = file.overviews(1)
        status = None
        with suppress(OSError):
            status = os.stat(path)
        stamp = f"{status.st_size} {status.st_mtime_ns}" if status else ""
        return SceneInfo(
            name=path,
            size=(file.height, file.width),
            dtypes=tuple(file.dtypes),
            colours=tuple(names.get(each, "") for each in file.colorinterp),
            levels=(1.0, *(float(each) for each in overviews)),
            georeference=georeference,
            notes=notes,
            identity=f"{stamp} {file.width}x{file.height}x{file.count} {file.dtypes}",
            palette=palette,
        )

    def _georeference(self) -> tuple[Georeference, tuple[str, ...]]:
        file = self._file
        transform: Affine = tuple(file.transform)[:6]
        notes = []
        if file.crs is None and transform == IDENTITY:
            points = file.gcps[0]
            if points:
                notes.append(
                    f"it has {len(points)} ground control points but no transform; results are in "
                    "pixels (gdalwarp makes a transform of them)"
                )
            return Georeference(), tuple(notes)
        if file.crs is None:
            notes.append("it has a transform but no CRS; results have its coordinates and no CRS")
            reference = Georeference(transform)
        else:
            crs = file.crs
            factor = None
            if crs.is_projected:
                factor = float(crs.linear_units_factor[1])
            reference = Georeference(
                transform, crs.to_wkt(), crs.to_epsg(), factor, bool(crs.is_geographic)
            )
        a, b, _, d, e, _ = transform
        if a * e - b * d == 0:
            notes.append("its transform is singular and was left out; results are in pixels")
            return Georeference(), tuple(notes)
        if reference.is_rotated:
            notes.append("its transform is rotated; results follow it, and areas are true")
        return reference, tuple(notes)

    def read(self, bands: tuple[int, ...], window: Window, shape: Size | None = None) -> Pixels:
        """As `Source.read`."""
        from rasterio.windows import Window as FileWindow

        x0, y0, x1, y1 = window
        place = FileWindow(x0, y0, x1 - x0, y1 - y0)
        options: dict[str, Any] = {"window": place}
        size = (y1 - y0, x1 - x0) if shape is None else shape
        try:
            with self._environment:
                parts = [
                    self._file.read(band + 1, out_shape=None if shape is None else size, **options)
                    for band in bands
                ]
                # GDAL's mask reads every band: only where something can be missing.
                valid = np.ones(size, dtype=np.bool_)
                if self._may_lack_data():
                    valid = self._file.dataset_mask(out_shape=size, **options) > 0
        except self._errors as error:
            raise SceneReadError(
                f"{self.info.name}: columns {x0} to {x1}, rows {y0} to {y1} cannot be read "
                f"({_one_line(error)})"
            ) from error
        values = np.stack(parts, 2) if len({p.dtype for p in parts}) == 1 else _common(parts)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(2)
        if self._nodata is not None:
            valid &= (values != self._nodata).any(2)
        return Pixels(values, valid)

    def _may_lack_data(self) -> bool:
        from rasterio.enums import MaskFlags

        return any(MaskFlags.all_valid not in flags for flags in self._file.mask_flag_enums)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _common(parts: list[Any]) -> Any:
    """Bands of several dtypes, as float32; each has its own value range later."""
    return np.stack([part.astype(np.float32) for part in parts], 2)


def _one_line(error: BaseException) -> str:
    """The innermost reason that GDAL gave."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
