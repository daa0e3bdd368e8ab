"""What the device's thread does with the engine: encode a batch, decode a batch, one by one where
a batch fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from samfast.engine import SamFast
from samfast.errors import DeviceMemoryError, SamfastError
from samfast.images import LoadedImage
from samfast.masks import boxes, coco_text
from samfast.masks.bit_masks import pack
from samfast.masks.mask_runs import PixelChanges
from samfast.serve.mask_refs import MaskRefs
from samfast.serve.messages import MaskAnswer, ObjectAnswer, ObjectPrompt
from samfast.types import Embeddings, Masks, Prompts

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """A request for the masks of some objects of one image.

    masks  the low-resolution logits (1, 256, 256) that each object's `mask` names, or None
    """

    image_id: str
    embedding: Embeddings
    objects: Sequence[ObjectPrompt]
    masks: Sequence[Tensor | None]
    multimask: bool


def each_or_error(
    items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
) -> list[R | Exception]:
    """The results of a batch, or for each item that fails alone the error.

    A batch that the device's memory does not hold is split in halves; a batch with an item that
    cannot be used is repeated one by one, so that only this item fails.
    """
    try:
        return list(work(items))
    except (DeviceMemoryError, torch.OutOfMemoryError) as error:
        failure: Exception = error
        size = len(items) // 2
    except (SamfastError, RuntimeError, ValueError) as error:
        failure, size = error, 1
    if len(items) == 1:
        return [failure.with_traceback(None)]
    del failure  # its traceback holds the batch's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    results: list[R | Exception] = []
    for start in range(0, len(items), size):
        results += each_or_error(items[start : start + size], work)
    return results


class DeviceTasks:
    """The engine's work for many callers. Call it from the device's thread only."""

    def __init__(self, sam: SamFast, refs: MaskRefs) -> None:
        self.sam, self._refs = sam, refs

    def warm_up(self) -> None:
        """Encode and decode once, so that nothing is compiled or allocated in a request."""
        images = [torch.full((3, 480, 640), 90, dtype=torch.uint8)] * self.sam.batch_size
        embeddings = self.sam.embed(images)
        for multimask in (True, False):
            click = Prompts(points=[[[320.0, 240.0]]], labels=[[1]])
            masks = self.sam.predict(embeddings[:1], [click], multimask=multimask)
            encode_masks(masks[0])

    def encode(self, images: Sequence[LoadedImage]) -> list[Embeddings | Exception]:
        """The embedding of each image, or the error that it fails with alone."""
        return each_or_error(images, self._encode)

    def _encode(self, images: Sequence[LoadedImage]) -> list[Embeddings]:
        together = self.sam.embed(list(images))
        together.verify()
        if len(together) == 1:
            return [together]
        # Copies: a view would keep the whole batch alive for its last image.
        return [_copied(together[i]) for i in range(len(together))]

    def decode(self, requests: Sequence[DecodeRequest]) -> list[list[ObjectAnswer] | Exception]:
        """The answer to each request, or the error that it fails with alone."""
        results: dict[int, list[ObjectAnswer] | Exception] = {}
        for multimask in (True, False):
            alike = [i for i, each in enumerate(requests) if each.multimask is multimask]
            answers = each_or_error([requests[i] for i in alike], self._decode) if alike else []
            results.update(zip(alike, answers, strict=True))
        return [results[i] for i in range(len(requests))]

    def _decode(self, requests: Sequence[DecodeRequest]) -> list[list[ObjectAnswer]]:
        """Requests for any images, all with multimask or all without, in one call of the engine."""
        rows: dict[tuple[object, ...], list[tuple[int, int]]] = {}
        for number, request in enumerate(requests):
            for index, prompt in enumerate(request.objects):
                rows.setdefault((request.image_id, *_kinds(prompt)), []).append((number, index))
        groups = list(rows.values())
        embeddings = [requests[group[0][0]].embedding for group in groups]
        prompts = [_prompts(requests, group) for group in groups]
        results = self.sam.predict(
            _together(embeddings, self.sam.device), prompts, multimask=requests[0].multimask
        )
        answers: list[dict[int, ObjectAnswer]] = [{} for _ in requests]
        for group, masks in zip(groups, results, strict=True):
            encoded = self._answers(requests[group[0][0]].image_id, masks)
            for (number, index), answer in zip(group, encoded, strict=True):
                answers[number][index] = answer
        return [[each[i] for i in range(len(each))] for each in answers]

    def _answers(self, image_id: str, masks: Masks) -> list[ObjectAnswer]:
        """The answer for each object of an image, its logits kept for later prompts."""
        masks.verify()
        low_res = masks.low_res.as_subclass(Tensor)
        iou = masks.iou.cpu().tolist()
        encoded = encode_masks(masks)
        count, each = masks.masks.shape[:2]
        size = int(masks.masks.shape[2]), int(masks.masks.shape[3])
        answers = []
        for i in range(count):
            token = secrets.token_hex(8)
            refs = [f"{token}.{k}" for k in range(each)]
            for k, ref in enumerate(refs):
                self._refs.put(ref, image_id, low_res[i, k : k + 1])
            answers.append(
                ObjectAnswer(
                    tuple(
                        MaskAnswer(counts, size, iou[i][k], area, box, refs[k])
                        for k, (counts, area, box) in enumerate(encoded[i * each : (i + 1) * each])
                    )
                )
            )
        return answers


def encode_masks(masks: Masks) -> list[tuple[str, int, tuple[int, int, int, int]]]:
    """COCO's text, area and box XYWH of each mask, (N, M) in order, read off on the device."""
    flat = masks.masks.as_subclass(Tensor).flatten(0, 1)
    if not len(flat):
        return []
    counts = coco_text.strings(PixelChanges(pack(flat), flat.shape[1]).runs())
    areas = flat.flatten(1).sum(1).tolist()
    corners = boxes.from_masks(flat).tolist()
    return [
        (text, area, (x0, y0, x1 - x0 + 1, y1 - y0 + 1) if area else (0, 0, 0, 0))
        for text, area, (x0, y0, x1, y1) in zip(counts, areas, corners, strict=True)
    ]


def _copied(embedding: Embeddings) -> Embeddings:
    return Embeddings(
        embedding.features.clone(),
        embedding.original_sizes,
        embedding.input_sizes,
        embedding.fingerprint,
    )


def _kinds(prompt: ObjectPrompt) -> tuple[bool, bool, bool]:
    """Objects of one image are decoded together if these are equal."""
    return bool(prompt.points), prompt.box is not None, prompt.mask is not None


def _prompts(requests: Sequence[DecodeRequest], rows: Sequence[tuple[int, int]]) -> Prompts:
    """The prompts of these (request, object), all of one image and of the same kinds."""
    objects = [requests[number].objects[index] for number, index in rows]
    points, box, mask = _kinds(objects[0])
    logits = [requests[number].masks[index] for number, index in rows] if mask else []
    return Prompts(
        points=[each.points for each in objects] if points else None,
        labels=[each.labels for each in objects] if points else None,
        boxes=[each.box for each in objects] if box else None,
        masks=torch.stack([each for each in logits if each is not None]) if mask else None,
    )


def _together(embeddings: Sequence[Embeddings], device: torch.device) -> Embeddings:
    """Embeddings of one image each, from wherever they are, as one on the device."""
    moved = [each.to(device) for each in embeddings]
    if len(moved) == 1:
        return moved[0]
    return Embeddings(
        torch.cat([each.features for each in moved]),
        tuple(each.original_sizes[0] for each in moved),
        tuple(each.input_sizes[0] for each in moved),
        moved[0].fingerprint,
    )
