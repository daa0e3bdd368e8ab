"""Bands of any dtype -> RGB: which three are shown, and which values are black and white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samfast.errors import ImageError, InputError, shown
from samfast.scenes.source import Pixels, SceneInfo, Source
from samfast.types import Size

PERCENTILES = (2.0, 98.0)
"""Black and white of bands that are not 8-bit, unless value_range says them."""

OVERVIEW_SIDE, LATTICE, PATCH = 1024, 8, 128
"""Percentiles are those of an overview of this side at most. Of a scene without overviews they are
those of LATTICE x LATTICE patches of PATCH x PATCH pixels, so that it is not read as a whole."""

WITHOUT_OVERVIEWS = 4096
"""Longest side in pixels of a scene that is read as a whole although it has no overviews."""

ValueRange = tuple[float, float] | Sequence[tuple[float, float]]
"""(black, white), or one such pair for each of the bands that are shown."""


@dataclass(frozen=True, eq=False)
class BandScaling:
    """How a scene's values become RGB.

    bands    the one or three bands that are shown, counted from 0
    ranges   the values that become 0 and 255 in each of them; None: 8-bit values as they are
    palette  (256, 3) colours of the values of a single band, or None
    notes    what was chosen, one sentence each
    """

    bands: tuple[int, ...]
    ranges: tuple[tuple[float, float], ...] | None
    palette: NDArray[np.uint8] | None
    notes: tuple[str, ...] = ()

    def to_rgb(self, pixels: Pixels) -> NDArray[np.uint8]:
        """(H, W, 3) uint8. Pixels without data may have any colour."""
        values = pixels.values
        if self.palette is not None:
            colours: NDArray[np.uint8] = self.palette[values[:, :, 0]]
            return colours
        if self.ranges is not None:
            values = np.stack(
                [_scale(values[:, :, i], *limits) for i, limits in enumerate(self.ranges)], 2
            )
        return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")


def choose_scaling(
    source: Source,
    bands: Sequence[int] | None = None,
    percentiles: tuple[float, float] | None = None,
    value_range: ValueRange | None = None,
) -> BandScaling:
    """The bands and values to show.

    bands        one or three of them, counted from 1 as GDAL does; None: red, green and blue where
                 the file names them, else the first three, or of fewer the first, as grey
    percentiles  black and white as percentiles of each band; None: 8-bit bands as they are, others
                 by PERCENTILES
    value_range  black and white as values, instead of percentiles

    Raises InputError for what does not fit the scene.
    """
    info = source.info
    chosen, notes = _choose_bands(info, bands)
    if value_range is not None and percentiles is not None:
        raise InputError("give either percentiles or value_range, not both")
    scaling = BandScaling(chosen, None, None, notes)
    if info.palette is not None and value_range is None and percentiles is None:
        return replace(scaling, palette=info.palette, notes=(*notes, "its palette was applied"))
    if value_range is not None:
        return replace(scaling, ranges=_check_ranges(value_range, len(chosen)))
    dtypes = {info.dtypes[band] for band in chosen}
    if dtypes == {"uint8"} and percentiles is None:
        return scaling
    low, high = _check_pair("percentiles", percentiles or PERCENTILES, most=100.0)
    ranges = tuple(_percentiles(source, chosen, low, high))
    kinds = ", ".join(sorted(dtypes))
    limits = ", ".join(f"{a:g}..{b:g}" for a, b in ranges)
    mixed = " of bands of several dtypes, each by itself," if len(dtypes) > 1 else ""
    stated = (
        f"values ({kinds}){mixed} are stretched from the percentiles {low:g} and {high:g}: {limits}"
    )
    return replace(scaling, ranges=ranges, notes=(*notes, stated))


def _choose_bands(
    info: SceneInfo, bands: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    count = len(info.dtypes)
    if bands is not None:
        chosen = tuple(bands)
        whole = all(isinstance(b, int) and not isinstance(b, bool) for b in chosen)
        if len(chosen) not in (1, 3) or not whole or not all(1 <= b <= count for b in chosen):
            raise InputError(
                f"{info.name}: bands {shown(bands)}; give one or three from 1 to {count}"
            )
        return tuple(band - 1 for band in chosen), ()
    named = {colour: i for i, colour in reversed(list(enumerate(info.colours)))}
    if all(colour in named for colour in ("red", "green", "blue")):
        rgb = tuple(named[colour] for colour in ("red", "green", "blue"))
        note = () if rgb == (0, 1, 2) else (f"red, green, blue are bands {_listed(rgb)}",)
        return rgb, note
    colours = (*info.colours, *("",) * count)
    shownable = [i for i in range(count) if colours[i] != "alpha"]
    if len(shownable) >= 3:
        first = tuple(shownable[:3])
        return first, (f"bands {_listed(first)} of {count} are shown as red, green, blue",)
    if not shownable:
        raise ImageError(f"{info.name}: its only band is alpha; nothing can be seen in it")
    note = () if count == 1 else (f"band {shownable[0] + 1} of {count} is shown as grey",)
    return (shownable[0],), note


def _listed(bands: Sequence[int]) -> str:
    return ", ".join(str(band + 1) for band in bands)


def _check_ranges(value_range: ValueRange, count: int) -> tuple[tuple[float, float], ...]:
    values = list(value_range) if isinstance(value_range, Sequence) else [value_range]
    pairs = values if values and isinstance(values[0], Sequence) else [value_range]
    if len(pairs) not in (1, count):
        raise InputError(f"value_range has {len(pairs)} pairs for {count} bands")
    checked = [_check_pair("value_range", pair) for pair in pairs]
    return tuple(checked * count if len(checked) == 1 else checked)


def _check_pair(name: str, pair: object, most: float = math.inf) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in pair)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(f"{name} is {shown(pair)}; give two numbers, black and white") from None
    least = 0.0 if most < math.inf else -math.inf
    if not (math.isfinite(low) and math.isfinite(high) and least <= low < high <= most):
        limits = " from 0 to 100" if most < math.inf else ""
        raise InputError(f"{name} is {shown(pair)}; give black and white{limits}, black first")
    return low, high


def _percentiles(
    source: Source, bands: tuple[int, ...], low: float, high: float
) -> list[tuple[float, float]]:
    samples = [pixels.values[pixels.valid] for pixels in _samples(source, bands)]
    values = np.concatenate(samples) if samples else np.zeros((0, len(bands)))
    ranges = []
    for band in range(len(bands)):
        if len(values) == 0:
            ranges.append((0.0, 1.0))  # a scene without data, in which nothing is segmented
            continue
        black, white = np.percentile(values[:, band].astype(np.float64), [low, high])
        ranges.append((float(black), float(white) if white > black else float(black) + 1.0))
    return ranges


def _samples(source: Source, bands: tuple[int, ...]) -> list[Pixels]:
    height, width = source.info.size
    longest = max(height, width)
    if len(source.info.levels) > 1 or longest <= WITHOUT_OVERVIEWS:
        factor = max(1.0, longest / OVERVIEW_SIDE)
        shape: Size = (max(1, round(height / factor)), max(1, round(width / factor)))
        return [source.read(bands, (0, 0, width, height), shape)]
    places = [
        (int(x), int(y))
        for y in np.linspace(0, max(0, height - PATCH), LATTICE)
        for x in np.linspace(0, max(0, width - PATCH), LATTICE)
    ]
    return [
        source.read(bands, (x, y, min(x + PATCH, width), min(y + PATCH, height))) for x, y in places
    ]


def _scale(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Values to 0..255; NaN, where there is no data, to 0."""
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    shades: NDArray[np.uint8] = np.nan_to_num(np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)
    return shades
