"""Scoring during training: IoU of low-resolution masks of whole photos.

`samfast eval` and `training.table` score an exported checkpoint at the photos' full size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.errors import DatasetError
from samfast.model.sam import Sam
from samfast.types import PADDING_LABEL
from training.augment import LOW_RES, places, warp, within
from training.clicks import interior, pick
from training.losses import intersection_over_union
from training.network import Trainee
from training.store import Store

OBJECTS = 64
"""Objects that are decoded at a time."""


def whole(sizes: Tensor, side: int) -> Tensor:
    """(1, 2, 3): from pixels of a side x side input to the canvas of a whole photo (1, 2)."""
    scale = sizes.max() / side
    matrix = torch.zeros(1, 2, 3, device=sizes.device)
    matrix[0, 0, 0] = matrix[0, 1, 1] = scale
    matrix[0, :, 2] = scale / 2 - 0.5
    return matrix


@dataclass(frozen=True)
class WholePhoto:
    """A photo as at inference, with its masks.

    pixels (1, 3, S, S) of 0..255; inside (1, 1, S, S) bool; truth (N, S / 4, S / 4) bool; boxes
    (N, 4) XYXY in input pixels
    """

    pixels: Tensor
    inside: Tensor
    truth: Tensor
    boxes: Tensor


def whole_photos(
    store: Store, device: torch.device, side: int, min_area: int
) -> Iterator[WholePhoto]:
    """The photos of a store that have masks of at least min_area canvas pixels."""
    for i in range(len(store)):
        raw, ids, sizes = (
            t[i : i + 1].to(device) for t in (store.pixels, store.labels, store.sizes)
        )
        masks, boxes = objects(ids[0], min_area)
        if not len(masks):
            continue
        matrix = whole(sizes, side)
        fine = places(matrix, side, 1)
        coarse = places(matrix, side, LOW_RES).expand(len(masks), -1, -1, -1)
        truth = warp(masks[:, None], coarse, sizes.expand(len(masks), 2), "nearest")[:, 0] > 0.5
        yield WholePhoto(
            warp(raw, fine, sizes, "bilinear"),
            within(fine, sizes),
            truth,
            boxes / matrix[0, 0, 0],
        )


def shown(photo: WholePhoto, sam: Sam) -> Tensor:
    """The photo's pixels as the encoder takes them."""
    return (photo.pixels - sam.pixel_mean) / sam.pixel_std * photo.inside


@torch.no_grad()
def score(
    sam: Sam, store: Store, device: torch.device, side: int, min_area: int = 1024
) -> dict[str, float]:
    """Mean IoU over masks of at least min_area canvas pixels, for a central click and for a box.

    side  of the input; photos are shown whole at the frame's top left. For the model's own side
          the answers are the model's
    """
    trainee = Trainee(sam).eval()
    corner = torch.zeros(2, dtype=torch.int64, device=device)
    results: dict[str, list[Tensor]] = defaultdict(list)
    for photo in whole_photos(store, device, side, min_area):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = trainee.encode(shown(photo, sam), corner)
        for start in range(0, len(photo.truth), OBJECTS):
            part = photo.truth[start : start + OBJECTS]
            points = pick(interior(part))[:, None]
            box = photo.boxes[start : start + OBJECTS]
            for kind in ("point", "box"):
                is_box = torch.full((len(part),), kind == "box", device=device)
                labels = torch.where(is_box, PADDING_LABEL, 1)[:, None]
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    logits, iou = trainee.decode(
                        features, corner, points, labels, box, is_box, None
                    )
                target = part[:, None].expand_as(logits).float()
                actual = intersection_over_union(logits, target)
                best = iou[:, 1:].argmax(1, keepdim=True)
                if kind == "box":
                    results["box_miou"].append(actual[:, 0])
                else:
                    results["point_miou"].append(actual[:, 1:].gather(1, best)[:, 0])
                    results["point_miou_oracle"].append(actual[:, 1:].max(1).values)
    if not results:
        raise DatasetError(f"no mask of at least {min_area} px to score on")
    return {name: torch.cat(values).mean().item() for name, values in results.items()}


def objects(labels: Tensor, min_area: int) -> tuple[Tensor, Tensor]:
    """The objects of a photo's label planes (L, h, w): masks (N, h, w) bool and boxes (N, 4)."""
    masks = [
        plane == number
        for plane in labels
        for number in plane.unique().tolist()
        if number and int((plane == number).sum()) >= min_area
    ]
    boxes = []
    for mask in masks:
        y, x = mask.nonzero(as_tuple=True)
        boxes.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    if not masks:
        return labels.new_zeros(0, *labels.shape[1:]), labels.new_zeros(0, 4)
    return torch.stack(masks), torch.stack(boxes)
