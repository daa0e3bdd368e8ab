"""DecoderOutput of many images -> Masks of each at the original sizes, or Answers for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from samfast.decoding.decoded_prompts import DecodedPrompts
from samfast.decoding.decoder_output import DecoderOutput
from samfast.decoding.nested_decoder import nested
from samfast.device.checked_tensor import checked
from samfast.device.inference_modes import inference_modes
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import to_device
from samfast.masks import postprocess
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.prompts.device_checks import DeviceChecks
from samfast.prompts.object_rows import image_count, on_host
from samfast.types import Answers, Embeddings, Masks, PackedPrompts


def image_masks(decoded: DecodedPrompts, retry: RetryOnOOM) -> list[Masks]:
    """The masks of each image, in the order of the embeddings.

    Masks of neighbouring images of equal sizes are made at once and share memory. Answers on the
    host are checked here; NumericsError for one that holds NaN or infinity.
    """
    results: dict[int, Masks] = {}
    for image, masks, rows in masks_and_rows(decoded, retry):
        check = DeviceChecks(rows.codes, (decoded.numbers[image],), (0, len(rows.codes)))
        if on_host(rows.codes):
            check()
            results[image] = Masks(masks, rows.iou, rows.low_res)
        else:
            iou, low_res = checked(rows.iou, check), checked(rows.low_res, check)
            results[image] = Masks(checked(masks, check), iou, low_res, check)
    return [results[i] for i in range(len(decoded.embeddings))]


def masks_and_rows(
    decoded: DecodedPrompts, retry: RetryOnOOM
) -> Iterator[tuple[int, Tensor, DecoderOutput]]:
    """Each image's number among the embeddings, its masks (n, M, H, W), and its rows of the output.

    Unchecked, and in the order of the packed prompts.
    """
    rows = image_offsets(decoded.packed)
    geometries = [geometry_of(decoded.embeddings, image, decoded.side) for image, _, _ in rows]
    offsets = [0, *(stop for _, _, stop in rows)]
    low_res = decoded.output.low_res
    upscaled = upscale_masks(low_res, offsets, geometries, decoded.threshold, retry)
    for (image, start, stop), masks in zip(rows, upscaled, strict=True):
        yield image, masks, decoded.output.rows(start, stop)


def image_offsets(prompts: Sequence[PackedPrompts]) -> list[tuple[int, int, int]]:
    """Each image's number among the embeddings, and where its rows of the output begin and end."""
    images = [i for packed in prompts for i in packed.images or range(image_count(packed))]
    bounds = pairwise(_offsets(prompts))
    return [(image, start, stop) for image, (start, stop) in zip(images, bounds, strict=True)]


def geometry_of(embeddings: Embeddings, image: int, side: int) -> ResizeGeometry:
    """The place of an image in the model's input of that side."""
    return ResizeGeometry(embeddings.input_sizes[image], embeddings.original_sizes[image], side)


def batch_answers(output: DecoderOutput, checks: DeviceChecks, device: torch.device) -> Answers:
    """The answers for all images as jagged nested tensors.

    checks  of the prompts; where they are on the device, they are raised with those of the answers.
            Answers on the host are checked here; NumericsError for one that holds NaN or infinity
    """
    offsets = to_device(torch.as_tensor(checks.offsets), device)
    codes = output.codes if on_host(checks.codes) else checks.codes | output.codes
    with inference_modes(device):
        low_res, iou = nested(output.low_res, offsets), nested(output.iou, offsets)
    check = DeviceChecks(codes, checks.images, offsets)
    if on_host(codes):
        check()
        return Answers(low_res, iou)
    return Answers(low_res, iou, check)


def _offsets(prompts: Sequence[PackedPrompts]) -> list[int]:
    """Where each image's objects begin among the objects of all prompts, and where the last end."""
    offsets, start = [0], 0
    for packed in prompts:
        offsets += [start + int(stop) for stop in packed.offsets[1:]]
        start = offsets[-1]
    return offsets


def upscale_masks(
    low_res: Tensor,
    offsets: Sequence[int],
    geometries: Sequence[ResizeGeometry],
    threshold: float,
    retry: RetryOnOOM,
) -> list[Tensor]:
    """Each image's masks (n, M, H, W); all at once unless the GPU's memory does not suffice."""

    def work(start: int, stop: int) -> list[Tensor]:
        inside = [min(max(offset, start), stop) - start for offset in offsets]
        return postprocess.masks_of_images(low_res[start:stop], inside, geometries, threshold)

    count = max(1, len(low_res))  # no objects at all have masks too, of no rows
    chunks = list(retry.map_chunks(count, count, work))
    if len(chunks) == 1:
        return chunks[0]
    return [retry.run(partial(_joined, parts)) for parts in zip(*chunks, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts; not copied where one part has all of them."""
    some = [part for part in parts if len(part)] or [parts[0]]
    return some[0] if len(some) == 1 else torch.cat(some)
