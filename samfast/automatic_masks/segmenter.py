"""How images reach `samfast.automatic_masks.pipeline`: loaded and cut on a thread, encoded and
decoded by a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from samfast.automatic_masks import generate
from samfast.automatic_masks.candidates import Answer
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.pipeline import Crop, Group, Model, cut
from samfast.decoding.decoder import Decoder
from samfast.decoding.decoder_output import objects_per_call
from samfast.device.inference_modes import inference_modes
from samfast.device.prefetch import prefetch
from samfast.encoding.encoder import Encoder
from samfast.images import Batcher, LoadedImage, input_size
from samfast.images.batching import already_loaded
from samfast.images.device_preprocess import on_device, takes_raw_images
from samfast.types import ImageBatch, PackedPrompts, RawImageBatch

Batch = ImageBatch | RawImageBatch


class Segmenter:
    """Everything in each of many images.

    encode, decode  as a recipe runs them, on that device
    side            the model's input side in pixels
    batch_size      crops encoded at a time, but on a CPU
    """

    def __init__(
        self,
        encode: Encoder,
        decode: Decoder,
        *,
        side: int,
        mask_threshold: float,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self._decode, self._device = decode, device
        # A CPU gains nothing by company, and its answers stay those of the image alone, to the last
        # bit.
        company = device.type != "cpu"
        self._batch_size = batch_size if company else 1
        self._model: Model[Batch, Tensor] = Model(
            lambda batch: encode(on_device(batch, device)),
            self._answer,
            side,
            input_size,
            mask_threshold,
            device,
            objects_per_call(device),
            batch_across_crops=company and decode.across_images,
            low_memory=decode.low_memory,
        )

    def __call__(
        self,
        images: Iterator[Any],
        load: Callable[[Any, int], LoadedImage],
        options: AutomaticOptions,
        *,
        alone: bool = False,
    ) -> Generator[list[dict[str, Any]], None, None]:
        """The records of each image, in order; an error of an image comes after those of all before
        it.

        images  are asked for on a thread, ahead of their results, and `load` is called there with
                their numbers
        alone   there is but one, for which no thread is worth its start
        """
        least = options.pred_iou_thresh if options.pred_iou_thresh > 0 else None
        model = replace(self._model, decode=partial(self._answer, min_iou=least))
        batcher = Batcher(self._model.side, pin=self._device.type == "cuda")
        groups = self._groups(images, load, options, batcher)
        if not alone or options.crop_n_layers:
            groups = prefetch(groups)
        found = generate.find_each(groups, model, options)
        with batcher, closing(groups), closing(found):
            while True:
                with inference_modes(self._device):  # not while the caller has his turn
                    own = next(found, None)
                    if own is None:
                        return
                    size, masks = own
                    records = generate.records(masks, size, options.output_mode)
                yield records

    def _groups(
        self,
        images: Iterator[Any],
        load: Callable[[Any, int], LoadedImage],
        options: AutomaticOptions,
        batcher: Batcher,
    ) -> Generator[Group[Batch], None, None]:
        crops: list[Crop] = []
        pixels: list[LoadedImage] = []
        number = 0
        while True:
            try:
                image = next(images)
                whole = load(image, number)
                input_size(whole.size, self._model.side, whole.name)  # the message names the image
                cuts = cut(number, whole.size, options, self._model)
            except StopIteration:
                if crops:
                    yield self._group(batcher, crops, pixels)
                return
            except Exception as error:  # raised when all before are done
                yield self._group(batcher, crops, pixels, (number, error))
                return
            for crop in cuts:
                x0, y0, x1, y1 = crop.view.crop
                crops.append(crop)
                pixels.append(LoadedImage(whole.pixels[y0:y1, x0:x1], whole.name))
                if len(crops) == self._batch_size:
                    yield self._group(batcher, crops, pixels)
                    crops, pixels = [], []
            number += 1

    def _group(
        self,
        batcher: Batcher,
        crops: list[Crop],
        pixels: list[LoadedImage],
        failure: tuple[int, Exception] | None = None,
    ) -> Group[Batch]:
        if not crops:
            return Group([], ImageBatch(torch.empty(0), (), ()), failure)
        make = batcher.bytes if takes_raw_images(self._device) else batcher.floats
        return Group(crops, make(pixels, already_loaded), failure)

    def _answer(
        self, features: Tensor, pieces: Sequence[tuple[int, Tensor]], min_iou: float | None = None
    ) -> Answer:
        points = torch.cat([own for _, own in pieces])
        labels = torch.ones(points.shape[:2], dtype=torch.int64)
        offsets = (0, *accumulate(len(own) for _, own in pieces))
        images = tuple(place for place, _ in pieces)
        prompts = PackedPrompts(points, labels, None, None, offsets, images)
        # In the decoder's own dtype, which loses nothing: many wait in memory.
        answer = self._decode(features, [prompts], multimask=True, min_iou=min_iou, keep_dtype=True)
        return Answer(answer.low_res, answer.iou, answer.codes)
