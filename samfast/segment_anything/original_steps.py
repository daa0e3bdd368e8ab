"""The original generator's steps (SAM, appendix B), which projects override and call one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast import coco_rle
from samfast.masks import nms, rle, run_regions
from samfast.segment_anything.mask_data import MaskData
from samfast.segment_anything.utils import amg
from samfast.segment_anything.written_methods import WrittenMethods


class OriginalSteps:
    """The steps of `SamAutomaticMaskGenerator`, whose attributes they read, by the original's calls
    of `predictor`.

    `generate` takes them where a caller has replaced one of them or what they call, and else a
    faster way to the same masks.
    """

    predictor: Any

    @torch.no_grad()
    def _generate_masks(self, image: NDArray[np.uint8]) -> MaskData:
        """The masks of an image (H, W, 3), small regions included: columns on the host."""
        settings: Any = self
        size = image.shape[:2]
        crop_boxes, layers = amg.generate_crop_boxes(
            size, settings.crop_n_layers, settings.crop_overlap_ratio
        )
        data = MaskData()
        for crop_box, layer in zip(crop_boxes, layers, strict=True):
            data.cat(self._process_crop(image, crop_box, layer, size))
        if len(crop_boxes) > 1:
            boxes = data["crop_boxes"]
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            _remove_duplicates(data, 1 / area, settings.crop_nms_thresh)  # small crops first
        data.to_numpy()
        return data

    def _process_crop(
        self,
        image: NDArray[np.uint8],
        crop_box: list[int],
        crop_layer_idx: int,
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """Encode a crop XYXY of the image, decode its points, and remove duplicates.

        returns  columns `rles`, `boxes`, `points` and `crop_boxes`, in pixels of the image, and
                 `iou_preds` and `stability_score`
        """
        settings: Any = self
        x0, y0, x1, y1 = crop_box
        crop = image[y0:y1, x0:x1, :]
        size = crop.shape[:2]
        self.predictor.set_image(crop)
        points = settings.point_grids[crop_layer_idx] * np.array(size)[None, ::-1]
        data = MaskData()
        for (batch,) in amg.batch_iterator(settings.points_per_batch, points):
            data.cat(self._process_batch(batch, size, crop_box, orig_size))
        self.predictor.reset_image()
        _remove_duplicates(data, data["iou_preds"], settings.box_nms_thresh)
        data["boxes"] = amg.uncrop_boxes_xyxy(data["boxes"], crop_box)
        data["points"] = amg.uncrop_points(data["points"], crop_box)
        repeated = torch.tensor([crop_box] * len(data["rles"]), dtype=torch.int64)
        data["crop_boxes"] = repeated.reshape(-1, 4)
        return data

    def _process_batch(
        self,
        points: NDArray[np.float64],
        im_size: tuple[int, ...],
        crop_box: list[int],
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """Decode points (n, 2) XY in pixels of a crop, and keep the masks that pass the filters.

        returns  columns `rles`, of the whole image, `boxes` and `points`, in pixels of the crop,
                 `iou_preds` and `stability_score`
        """
        settings: Any = self
        predictor = self.predictor
        moved = predictor.transform.apply_coords(points, im_size)
        coords = torch.as_tensor(moved, device=predictor.device)
        labels = torch.ones(len(coords), dtype=torch.int, device=coords.device)
        logits, iou, _ = predictor.predict_torch(
            coords[:, None, :], labels[:, None], multimask_output=True, return_logits=True
        )
        data = MaskData(
            masks=logits.flatten(0, 1),
            iou_preds=iou.flatten(0, 1),
            points=torch.as_tensor(points.repeat(logits.shape[1], axis=0)),
        )
        del logits
        threshold = predictor.model.mask_threshold
        if settings.pred_iou_thresh > 0.0:
            data.filter(data["iou_preds"] > settings.pred_iou_thresh)
        data["stability_score"] = amg.calculate_stability_score(
            data["masks"], threshold, settings.stability_score_offset
        )
        if settings.stability_score_thresh > 0.0:
            data.filter(data["stability_score"] >= settings.stability_score_thresh)
        data["masks"] = data["masks"] > threshold
        data["boxes"] = amg.batched_mask_to_box(data["masks"])
        height, width = orig_size
        data.filter(~amg.is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, width, height]))
        masks = amg.uncrop_masks(data["masks"], crop_box, height, width)
        data["rles"] = amg.mask_to_rle_pytorch(masks)
        del data["masks"]
        return data

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
        size = [height, width]
        masks = [coco_rle.run_lengths({"size": size, "counts": each["counts"]})[1] for each in rles]
        cleaned = run_regions.remove_small(masks, (height, width), min_area)
        kept = nms.keep(cleaned.boxes, cleaned.unchanged, nms_thresh)
        as_tensor = isinstance(mask_data["boxes"], Tensor)
        for index in kept:
            if not cleaned.unchanged[index]:
                rles[index] = rle.uncompressed(cleaned.runs[index], height, width)
                box = cleaned.boxes[index]
                mask_data["boxes"][index] = torch.from_numpy(box) if as_tensor else box
        mask_data.filter(kept)
        return mask_data


STEP_METHODS = WrittenMethods(OriginalSteps)


def records(data: MaskData, output_mode: str) -> list[dict[str, Any]]:
    """The generator's records of the columns that `_generate_masks` returns."""
    encode: Any = {"coco_rle": amg.coco_encode_rle, "binary_mask": amg.rle_to_mask}
    segmentation = encode.get(output_mode, lambda runs: runs)
    return [
        {
            "segmentation": segmentation(runs),
            "area": amg.area_from_rle(runs),
            "bbox": amg.box_xyxy_to_xywh(data["boxes"][index]).tolist(),
            "predicted_iou": data["iou_preds"][index].item(),
            "point_coords": [data["points"][index].tolist()],
            "stability_score": data["stability_score"][index].item(),
            "crop_box": amg.box_xyxy_to_xywh(data["crop_boxes"][index]).tolist(),
        }
        for index, runs in enumerate(data["rles"])
    ]


def _remove_duplicates(data: MaskData, scores: Tensor, threshold: float) -> None:
    """Keep, of masks whose boxes' IoU is above the threshold, the one of the highest score."""
    boxes = data["boxes"].cpu().numpy()
    data.filter(nms.keep(boxes, scores.cpu().numpy(), threshold))
