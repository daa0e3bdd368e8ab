"""`SamAutomaticMaskGenerator`: everything in an image (original: `automatic_mask_generator.py`)."""

from __future__ import annotations

from collections.abc import Sequence
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
from samfast.masks import nms, rle
from samfast.model.sam import Sam
from samfast.segment_anything.predictor import HasModel, SamPredictor, check_image
from samfast.segment_anything.utils.amg import (
    MaskData,
    area_from_rle,
    batch_iterator,
    batched_mask_to_box,
    box_xyxy_to_xywh,
    build_all_layer_point_grids,
    calculate_stability_score,
    coco_encode_rle,
    generate_crop_boxes,
    is_box_near_crop_edge,
    mask_to_rle_pytorch,
    remove_small_regions,
    rle_to_mask,
    uncrop_boxes_xyxy,
    uncrop_masks,
    uncrop_points,
)

__all__ = [
    "MaskData",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]


class SamAutomaticMaskGenerator:
    """The original's names, options (see `AutomaticOptions`), attributes and results.

    model  a Sam, or a SamFast, whose model is then used

    Options may be changed as attributes between calls. Raises PromptError or InputError, both
    ValueError, for options that cannot be used. Where no mask passes, `generate` returns an empty
    list.
    """

    def __init__(
        self,
        model: nn.Module | HasModel,
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
        options = AutomaticOptions(
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            point_grids=point_grids,
            min_mask_region_area=min_mask_region_area,
            output_mode=output_mode,
        )
        self.point_grids: Sequence[NDArray[Any]] = (
            options.grids() if point_grids is None else point_grids
        )
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
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    @torch.no_grad()
    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Every mask of an image (H, W, 3) uint8 RGB, as records.

        Keys: `segmentation` ((H, W) bool array, or an RLE), `bbox` XYWH, `area` in pixels,
        `predicted_iou`, `point_coords` [[x, y]], `stability_score`, `crop_box` XYWH.
        """
        masks = self._masks(image, self.min_mask_region_area, self.output_mode)
        return to_records(masks, self.output_mode)

    def _masks(self, image: NDArray[np.uint8], min_area: float, output_mode: str) -> GeneratedMasks:
        check_image(image)
        options = AutomaticOptions(
            points_per_side=None,
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
            box_nms_thresh=self.box_nms_thresh,
            crop_n_layers=self.crop_n_layers,
            crop_nms_thresh=self.crop_nms_thresh,
            crop_overlap_ratio=self.crop_overlap_ratio,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            point_grids=self.point_grids,
            min_mask_region_area=min_area,
            output_mode=output_mode,
        )
        try:
            model = PointModel(
                self.predictor.set_image,
                self._decode,
                self.predictor.transform.target_length,
                self.predictor.model.mask_threshold,
                self.predictor.device,
            )
            return generate(image, options, model)
        finally:
            self.predictor.reset_image()

    def _decode(self, features: None, crops: Sequence[tuple[int, Tensor]]) -> DecoderOutput:
        """One foreground point each (n, 1, 2), of the predictor's image -> three masks each."""
        ((_, points),) = crops
        points = points.to(self.predictor.device)
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        low_res, iou = self.predictor.predict_low_res(points, labels, multimask_output=True)
        unchecked = torch.empty(0, dtype=torch.uint8, device=iou.device)
        return DecoderOutput(low_res, iou, unchecked)

    @torch.no_grad()
    def _generate_masks(self, image: NDArray[np.uint8]) -> MaskData:
        """As generate, but as columns, and no small regions removed; projects that extend it call
        this.
        """
        masks = self._masks(image, 0, "uncompressed_rle")
        records = to_records(masks, "uncompressed_rle")
        return MaskData(
            iou_preds=masks.iou,
            points=masks.points,
            stability_score=masks.stability,
            boxes=masks.boxes,
            rles=[record["segmentation"] for record in records],
            crop_boxes=masks.crop_boxes,
        )

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: int, nms_thresh: float
    ) -> MaskData:
        """Remove holes and islands of fewer than `min_area` pixels, and duplicates that this makes.

        Edits and returns mask_data; needs its `rles` and `boxes`.
        """
        rles = mask_data["rles"]
        if not rles:
            return mask_data
        height, width = rles[0]["size"]
        runs, boxes, unchanged = small_regions.clean(
            [np.asarray(own["counts"]) for own in rles], (height, width), min_area
        )
        kept = nms.keep(boxes, unchanged, nms_thresh)
        for index in kept:
            if not unchanged[index]:
                rles[index] = rle.uncompressed(runs[index], height, width)
                mask_data["boxes"][index] = (
                    torch.from_numpy(boxes[index])
                    if isinstance(mask_data["boxes"], Tensor)
                    else boxes[index]
                )
        mask_data.filter(torch.from_numpy(kept))
        return mask_data
