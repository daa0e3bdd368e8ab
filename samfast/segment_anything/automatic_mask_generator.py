"""`SamAutomaticMaskGenerator`: every mask in an image (original: `automatic_mask_generator.py`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks.generate import generate
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.mask_records import to_records
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import PointModel
from samfast.decoding.decoder_output import DecoderOutput
from samfast.engine import SamFast
from samfast.model.sam import Sam
from samfast.segment_anything import original_steps
from samfast.segment_anything.original_steps import STEP_METHODS, OriginalSteps
from samfast.segment_anything.predictor import PREDICTOR_METHODS, SamPredictor, check_image
from samfast.segment_anything.recipe_runner import SAM_METHODS
from samfast.segment_anything.utils import amg
from samfast.segment_anything.utils.amg import *  # noqa: F403 (the original imports these names)
from samfast.segment_anything.utils.transforms import TRANSFORM_METHODS

__all__ = ["Sam", "SamAutomaticMaskGenerator", "SamPredictor"]
__all__ += amg.__all__


_LOG = logging.getLogger("samfast")

_STEP_BY_STEP = "the original's steps one by one"


class SamAutomaticMaskGenerator(OriginalSteps):
    """The original's names, options (see `AutomaticOptions`), attributes and results.

    model  as of `SamPredictor`; where its recipe runs, `SamFast.segment` makes the records

    Where a caller has replaced one of the steps `_generate_masks`, `_process_crop`,
    `_process_batch` and `postprocess_small_regions`, or a method of the predictor, its transform or
    its model, these are called in the original's order, which is logged at INFO. `describe` says
    what runs.

    Options may be changed as attributes between calls. Raises PromptError or InputError, both
    ValueError, for options that cannot be used. Where no mask passes, `generate` returns an empty
    list.

        generator = SamAutomaticMaskGenerator(samfast.load("vit_b"), points_per_side=16)
        records = generator.generate(np.array(PIL.Image.open("photo.jpg").convert("RGB")))
    """

    _logged: str | None = None

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[Any]] | None = None,
        min_mask_region_area: float = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        grids = AutomaticOptions(
            points_per_side=points_per_side,
            point_grids=point_grids,
            crop_n_layers=crop_n_layers,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        ).grids()
        self.predictor = SamPredictor(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.point_grids: Sequence[NDArray[Any]] = grids if point_grids is None else point_grids
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self._options()  # for its check of the other options

    @torch.no_grad()
    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Every mask of an image (H, W, 3) uint8 RGB, as records.

        Keys: `segmentation` ((H, W) bool array, or an RLE), `bbox` XYWH, `area` in pixels,
        `predicted_iou`, `point_coords` [[x, y]], `stability_score`, `crop_box` XYWH.
        """
        options = self._options()
        check_image(image)
        replaced = self._replaced()
        if replaced is not None:
            self._log(replaced)
            data = self._generate_masks(image)
            if self.min_mask_region_area > 0:
                threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
                area: Any = self.min_mask_region_area
                data = self.postprocess_small_regions(data, area, threshold)
            return original_steps.records(data, self.output_mode)
        fast = self.predictor.runner.current()
        if isinstance(fast, SamFast):
            self.predictor.reset_image()
            given = {field.name: getattr(options, field.name) for field in fields(options)}
            return [*fast.segment([image], **given)[0]]
        return [*to_records(self._masks(image, options), options.output_mode)]

    def describe(self) -> str:
        """The model and the recipe that runs, or why none does, in lines for a person.

        Where a caller has replaced a step, the last line says which: all of the original's steps
        are taken then, one by one.
        """
        replaced = self._replaced()
        describe = getattr(self.predictor, "describe", None)
        lines = [] if describe is None else [describe()]
        if replaced is not None:
            lines.append(f"masks     {_STEP_BY_STEP}: {replaced}")
        return "\n".join(lines)

    def _options(self) -> AutomaticOptions:
        """The attributes, which may have been changed since the last call."""
        names = [field.name for field in fields(AutomaticOptions) if hasattr(self, field.name)]
        current = {name: getattr(self, name) for name in names}
        return AutomaticOptions(**{**current, "points_per_side": None})

    def _replaced(self) -> str | None:
        """What a caller has replaced of the steps, or of the methods that they call, in words."""
        for written, owner in (
            (STEP_METHODS, lambda: self),
            (PREDICTOR_METHODS, lambda: self.predictor),
            (TRANSFORM_METHODS, lambda: self.predictor.transform),
            (SAM_METHODS, lambda: self.predictor.model),
        ):
            replaced = written.replaced_in(owner())
            if replaced is not None:
                return replaced
        return None

    def _log(self, reason: str) -> None:
        if reason != self._logged:
            _LOG.info("SamAutomaticMaskGenerator takes %s: %s", _STEP_BY_STEP, reason)
        self._logged = reason

    def _masks(self, image: NDArray[np.uint8], options: AutomaticOptions) -> GeneratedMasks:
        """The masks by the modules of the model, in the order in which samfast finds them."""
        predictor = self.predictor
        side, threshold = predictor.transform.target_length, predictor.model.mask_threshold
        model = PointModel(predictor.set_image, self._decode, side, threshold, predictor.device)
        try:
            return generate(image, options, model)
        finally:
            predictor.reset_image()

    def _decode(self, features: None, crops: Sequence[tuple[int, Tensor]]) -> DecoderOutput:
        """One foreground point per object (n, 1, 2), all of the crop that is set -> three masks."""
        ((_, points),) = crops
        points = points.to(self.predictor.device)
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        low_res, iou = self.predictor.predict_low_res(points, labels, multimask_output=True)
        unchecked = torch.empty(0, dtype=torch.uint8, device=iou.device)
        return DecoderOutput(low_res, iou, unchecked)
