"""`SamAutomaticMaskGenerator`: every mask in an image (original: `automatic_mask_generator.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfast.automatic_masks import small_regions
from samfast.automatic_masks.generate import generate
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.mask_records import to_records
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import PointModel
from samfast.decoding.decoder_output import DecoderOutput
from samfast.engine import SamFast
from samfast.masks import nms, rle
from samfast.model.sam import Sam
from samfast.segment_anything.predictor import SamPredictor, check_image
from samfast.segment_anything.recipe_decoder import is_overridden
from samfast.segment_anything.utils import amg
from samfast.segment_anything.utils.amg import *  # noqa: F403 (the original imports these names)
from samfast.segment_anything.utils.amg import MaskData
from samfast.segment_anything.utils.transforms import ResizeLongestSide

__all__ = ["Sam", "SamAutomaticMaskGenerator", "SamPredictor"]
__all__ += amg.__all__


class SamAutomaticMaskGenerator:
    """The original's names, options (see `AutomaticOptions`), attributes and results.

    model  a Sam, or a SamFast, whose `segment` then makes the records

    Options may be changed as attributes between calls. Raises PromptError or InputError, both
    ValueError, for options that cannot be used. Where no mask passes, `generate` returns an empty
    list.

        generator = SamAutomaticMaskGenerator(samfast.load("vit_b"), points_per_side=16)
        records = generator.generate(np.array(PIL.Image.open("photo.jpg").convert("RGB")))
    """

    def __init__(
        self,
        model: nn.Module | SamFast,
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
        fast = self._unchanged_samfast()
        if fast is not None:
            check_image(image)
            self.predictor.reset_image()
            given = {field.name: getattr(options, field.name) for field in fields(options)}
            return [*fast.segment([image], **given)[0]]
        return [*to_records(self._masks(image, options), options.output_mode)]

    def _options(self, **changes: Any) -> AutomaticOptions:
        """The attributes, which may have been changed since the last call."""
        names = {field.name for field in fields(AutomaticOptions)} & vars(self).keys()
        current = {name: getattr(self, name) for name in names}
        return AutomaticOptions(**{**current, "points_per_side": None, **changes})

    def _unchanged_samfast(self) -> SamFast | None:
        """The SamFast, unless a caller has replaced a step of it or of the predictor."""
        recipe = self.predictor.recipe_decoder
        steps = (
            (self, SamAutomaticMaskGenerator),
            (self.predictor, SamPredictor),
            (self.predictor.transform, ResizeLongestSide),
            (self.predictor.model, Sam),
        )
        if recipe is None or any(is_overridden(*step) for step in steps):
            return None
        return recipe.fast if recipe.modules_unchanged else None

    def _masks(self, image: NDArray[np.uint8], options: AutomaticOptions) -> GeneratedMasks:
        check_image(image)
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

    @torch.no_grad()
    def _generate_masks(self, image: NDArray[np.uint8]) -> MaskData:
        """The masks of `generate` as columns, small regions included; some projects call this."""
        options = self._options(min_mask_region_area=0, output_mode="uncompressed_rle")
        masks = self._masks(image, options)
        return MaskData(
            iou_preds=masks.iou,
            points=masks.points,
            stability_score=masks.stability,
            boxes=masks.boxes,
            rles=[record["segmentation"] for record in to_records(masks, options.output_mode)],
            crop_boxes=masks.crop_boxes,
        )

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: int, nms_thresh: float
    ) -> MaskData:
        """Remove holes and islands of fewer than `min_area` pixels, and resulting duplicates.

        Changes and returns mask_data; needs its `rles` and `boxes`.
        """
        rles = mask_data["rles"]
        if not rles:
            return mask_data
        height, width = rles[0]["size"]
        counts = [np.asarray(each["counts"]) for each in rles]
        runs, boxes, unchanged = small_regions.clean(counts, (height, width), min_area)
        kept = nms.keep(boxes, unchanged, nms_thresh)
        as_tensor = isinstance(mask_data["boxes"], Tensor)
        for index in kept:
            if not unchanged[index]:
                rles[index] = rle.uncompressed(runs[index], height, width)
                box = boxes[index]
                mask_data["boxes"][index] = torch.from_numpy(box) if as_tensor else box
        mask_data.filter(torch.from_numpy(kept))
        return mask_data
