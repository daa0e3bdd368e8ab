"""The options of automatic mask generation, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfast.automatic_masks.point_grids import grids, sides
from samfast.errors import InputError, PromptError, shown

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")

POINT_BYTES, CROP_BYTES = 32, 2048
"""Memory of a point, in pixels of its crop and of the input, and of what else a crop has."""

DEFAULT_MEMORY, LEAST_MEMORY, MOST_MEMORY = 1 << 30, 1 << 20, 1 << 40
"""Bytes that the points of an image's crops may take if max_memory does not say, and always. A
smaller max_memory is refused for its masks, in words of its own."""


@dataclass(frozen=True, eq=False)
class AutomaticOptions:
    """The original `SamAutomaticMaskGenerator`'s options, names and defaults, and one more.

    points_per_side         side of the square grid of points over the image; None with point_grids
    points_per_batch        points decoded at a time; recipes that fuse the decoder take up to four
                            times as many on a GPU, where memory suffices
    pred_iou_thresh         masks whose predicted IoU is not above it are dropped; 0 or less: off
    stability_score_thresh  masks that are less stable are dropped; 0 or less: off
    stability_score_offset  shift of the threshold for the stability score, in logits
    box_nms_thresh          of two masks of a crop whose boxes' IoU is above it the better one stays
    crop_n_layers           layers of crops, 4, 16, ... of them, segmented besides the whole image
    crop_nms_thresh         as box_nms_thresh, between masks of different crops
    crop_overlap_ratio      overlap of the first layer's crops as a share of the short side, 0 to 1
    crop_n_points_downscale_factor   each further layer has so many times fewer points a side
    point_grids             instead of points_per_side: for each layer (n, 2) points XY in [0, 1]
    min_mask_region_area    holes and islands of fewer pixels are removed; 0: off
    output_mode             "binary_mask" (H, W) bool arrays, "uncompressed_rle" or "coco_rle"
    max_memory              bytes to use beside the model, the features of the crops encoded
                            together and the results, whatever the number and size of images; None:
                            half of the free memory of a GPU, 1 GiB on a CPU. The points of all
                            crops of an image must fit into it, or into 1 GiB

    Raises PromptError for points that cannot be used and InputError for any other value.

        AutomaticOptions(points_per_side=16, output_mode="coco_rle")
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[NDArray[Any]] | None = None
    min_mask_region_area: float = 0
    output_mode: str = "binary_mask"
    max_memory: int | None = None

    def __post_init__(self) -> None:
        _check_whole("points_per_batch", self.points_per_batch, least=1)
        _check_whole("crop_n_layers", self.crop_n_layers, least=0)
        _check_whole("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, least=1)
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "stability_score_offset",
            "box_nms_thresh",
            "crop_nms_thresh",
        ):
            _check_number(name, getattr(self, name))
        _check_number("crop_overlap_ratio", self.crop_overlap_ratio, least=0.0, most=1.0)
        _check_number("min_mask_region_area", self.min_mask_region_area, least=0.0)
        if self.max_memory is not None:
            _check_whole("max_memory", self.max_memory, least=1)
        if not isinstance(self.output_mode, str) or self.output_mode not in OUTPUT_MODES:
            raise InputError(
                f"unknown output_mode {shown(self.output_mode)}; there are "
                f"{', '.join(OUTPUT_MODES)}"
            )
        self._check_points()

    def _check_work(self) -> None:
        """InputError if the points of an image and its crops do not fit into the memory."""
        stated = DEFAULT_MEMORY if self.max_memory is None else self.max_memory
        limit = min(max(stated, LEAST_MEMORY), MOST_MEMORY)
        crops = points = 0
        for layer in range(self.crop_n_layers + 1):
            crops += 4**layer
            points += 4**layer * self._points_in_crop(layer)
            needed = CROP_BYTES * crops + POINT_BYTES * points
            if needed > limit:
                more = "" if layer == self.crop_n_layers else f" in its first {layer} layers alone"
                raise InputError(
                    f"crop_n_layers={self.crop_n_layers}, points_per_side={self.points_per_side}: "
                    f"an image has {crops} crops and {points} points{more}, which take "
                    f"{needed >> 20} MiB before anything is segmented, and {limit >> 20} MiB may "
                    "be used; take fewer layers or points, or a larger max_memory"
                )

    def _points_in_crop(self, layer: int) -> int:
        if self.points_per_side is None:
            assert self.point_grids is not None, "exactly one of the two is given"
            return len(self.point_grids[layer])
        return int(self.points_per_side // self.crop_n_points_downscale_factor**layer) ** 2

    def _check_points(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise PromptError("give exactly one of points_per_side and point_grids")
        if self.points_per_side is not None:
            _check_whole("points_per_side", self.points_per_side, least=1)
            self._check_work()  # before a list of very many layers is made
            per_layer = sides(
                self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor
            )
            if 0 in per_layer:
                raise PromptError(
                    f"{self.points_per_side} points a side, divided by "
                    f"{self.crop_n_points_downscale_factor} for each layer of crops, leave none in "
                    f"layer {per_layer.index(0)}: take more points, fewer layers or a smaller "
                    "crop_n_points_downscale_factor"
                )
        elif self.point_grids is not None:
            array = isinstance(self.point_grids, np.ndarray) and self.point_grids.ndim > 0
            if not array and not isinstance(self.point_grids, list | tuple):
                raise PromptError(
                    f"point_grids must be a list of arrays (n, 2), not {shown(self.point_grids)}"
                )
            if len(self.point_grids) <= self.crop_n_layers:
                raise PromptError(
                    f"point_grids has {len(self.point_grids)} grids, but the image and "
                    f"{self.crop_n_layers} layers of crops need {self.crop_n_layers + 1}"
                )
            for index, points in enumerate(self.point_grids):
                _check_grid(index, points)
            self._check_work()

    @property
    def point_count(self) -> int:
        """Points of an image and its crops together; the same for every image."""
        grids = self.grids()[: self.crop_n_layers + 1]
        return sum(len(points) * 4**layer for layer, points in enumerate(grids))

    def grids(self) -> list[NDArray[np.float64]]:
        """Points (n, 2), XY in [0, 1], for the whole image and each layer of crops."""
        if self.points_per_side is None:
            return [np.asarray(points, dtype=np.float64) for points in self.point_grids or ()]
        return grids(self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {shown(value)}")


def _check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = number and math.isfinite(float(value))
    except OverflowError:  # an integer of more than 308 digits
        number = False
    if not number:
        raise InputError(f"{name} must be a finite number, not {shown(value)}")
    if not least <= float(value) <= most:
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"{name} must be {limits}, not {shown(value)}")


def _check_grid(index: int, points: Any) -> None:
    try:
        array = np.asarray(points)
        if array.dtype.kind == "c":
            raise TypeError("complex numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: tensors
        raise PromptError(f"point_grids[{index}] is not an array of numbers: {error}") from error
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise PromptError(f"point_grids[{index}] must be of shape (n, 2), XY, not {array.shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise PromptError(
            f"point_grids[{index}] must lie in [0, 1]: shares of the crop's width and height"
        )
