"""Scoring during training: IoU of low-resolution masks of whole photos.

`samfast eval` scores the exported checkpoint at the photos' full size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.errors import DatasetError
from samfast.model.sam import Sam
from training.augment import LOW_RES, places, warp
from training.clicks import interior, pick
from training.losses import intersection_over_union
from training.store import Store


@torch.no_grad()
def score(sam: Sam, store: Store, device: torch.device, min_area: int = 1024) -> dict[str, float]:
    """Mean IoU over masks of at least min_area canvas pixels, for a central click and for a box."""
    side = sam.image_encoder.img_size
    results: dict[str, list[Tensor]] = {"point_miou": [], "point_miou_oracle": [], "box_miou": []}
    position = sam.prompt_encoder.get_dense_pe()
    for i in range(len(store)):
        raw, ids, sizes = (
            t[i : i + 1].to(device) for t in (store.pixels, store.labels, store.sizes)
        )
        scale = sizes.max() / side
        matrix = torch.zeros(1, 2, 3, device=device)
        matrix[0, 0, 0] = matrix[0, 1, 1] = scale
        matrix[0, :, 2] = scale / 2 - 0.5
        pixels = warp(raw, places(matrix, side, 1), sizes, "bilinear")
        inside = warp(torch.ones_like(raw[:, :1]), places(matrix, side, 1), sizes, "nearest")
        pixels = (pixels - sam.pixel_mean) / sam.pixel_std * inside
        labels = warp(ids, places(matrix, side, LOW_RES), sizes, "nearest")[0]
        masks, corners = [], []
        for plane, low in zip(ids[0], labels, strict=True):
            for number in plane.unique().tolist():
                real = plane == number
                if number and int(real.sum()) >= min_area:
                    masks.append(low == number)
                    y, x = real.nonzero(as_tuple=True)
                    corners.append(
                        torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) / scale
                    )
        if not masks:
            continue
        truth = torch.stack(masks)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = sam.image_encoder(pixels)
        for start in range(0, len(truth), 64):
            part = truth[start : start + 64]
            points = pick(interior(part))[:, None]
            box = torch.stack(corners[start : start + 64])
            labels_of = torch.ones(len(part), 1, dtype=torch.int64, device=device)
            for kind in ("point", "box"):
                sparse, dense = sam.prompt_encoder(
                    points=(points, labels_of) if kind == "point" else None,
                    boxes=box if kind == "box" else None,
                    masks=None,
                )
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    logits, iou = sam.mask_decoder.predict_masks(features, position, sparse, dense)
                actual = intersection_over_union(
                    logits.float(), part[:, None].expand_as(logits).float()
                )
                if kind == "box":
                    results["box_miou"].append(actual[:, 0])
                else:
                    best = iou[:, 1:].argmax(1, keepdim=True)
                    results["point_miou"].append(actual[:, 1:].gather(1, best)[:, 0])
                    results["point_miou_oracle"].append(actual[:, 1:].max(1).values)
    if not results["box_miou"]:
        raise DatasetError(f"no mask of at least {min_area} px to score on")
    return {name: torch.cat(values).mean().item() for name, values in results.items()}
