"""Images -> generated masks by a recipe's encoder and decoder; loaded and cut on a thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from samfast.automatic_masks.generate import crops_of_each, finish
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.image_crops import Crop, CropGroup, cut_image
from samfast.automatic_masks.mask_records import to_records
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import PointModel
from samfast.decoding.decoder import Decoder
from samfast.decoding.decoder_output import DecoderOutput, objects_per_call
from samfast.device.inference_modes import inference_modes
from samfast.device.ordered_jobs import in_order
from samfast.device.prefetch import CallerIterator, prefetch
from samfast.device.transfer import works_beside_host
from samfast.encoding.encoder import Encoder
from samfast.errors import SamfastError
from samfast.images import Batcher, ImageLike, LoadedImage, input_size
from samfast.images.batch_loading import load_or_raise
from samfast.images.batching import already_loaded
from samfast.images.device_preprocess import batch_maker, on_device
from samfast.model.sam import Sam
from samfast.types import ImageBatch, MaskRecords, PackedPrompts, RawImageBatch

Batch = ImageBatch | RawImageBatch

MAX_UNFINISHED = 2
"""Images whose masks wait to be cleaned on a thread."""


def _records(crops: Sequence[GeneratedMasks], options: AutomaticOptions) -> MaskRecords:
    return to_records(finish(crops, options), options.output_mode)


class Segmenter:
    """Automatic mask generation for many images.

    model           whose device, input side and mask threshold are used
    encode, decode  the model's parts as a recipe runs them
    batch_size      crops encoded at a time on a GPU
    """

    def __init__(self, model: Sam, encode: Encoder, decode: Decoder, batch_size: int) -> None:
        self._decode, self._device = decode, (device := model.device)
        # Batching crops does not speed up a CPU, and it changes the last bits.
        batches = device.type != "cpu"
        self._batch_size = batch_size if batches else 1
        self._model: PointModel[Batch, Tensor] = PointModel(
            encode=lambda batch: encode(on_device(batch, device)),
            decode=self._decode_points,
            side=model.image_encoder.img_size,
            mask_threshold=model.mask_threshold,
            device=device,
            objects_per_call=objects_per_call(device),
            batch_across_crops=batches and decode.across_images,
            low_memory=decode.low_memory,
        )

    def __call__(
        self,
        images: Iterator[ImageLike | LoadedImage | SamfastError],
        options: AutomaticOptions,
        *,
        single: bool = False,
        points_done: Callable[[int], object] = lambda count: None,
    ) -> Generator[MaskRecords, None, None]:
        """The records of each image, in order; an error comes after the images before its own.

        images       iterated, and loaded, on a thread, ahead of the results; an error instead of an
                     image is raised
        single       there is only one image, for which a thread costs more than it saves
        points_done  as that of `crops_of_each`
        """
        min_iou = options.pred_iou_thresh if options.pred_iou_thresh > 0 else None
        model = replace(self._model, decode=partial(self._decode_points, min_iou=min_iou))
        batcher = Batcher(self._model.side, pin=self._device.type == "cuda")
        source = CallerIterator(images)
        groups = self._groups(source, options, batch_maker(batcher, self._device))
        if not single or options.crop_n_layers:
            groups = prefetch(groups, source=source)
        segmented = crops_of_each(groups, model, options, points_done)
        jobs = (partial(_records, crops, options) for crops in segmented)
        # The clean-up is the host's work, during which the device need not wait for its next work.
        cleans = options.min_mask_region_area > 0 and not single
        workers = 1 if cleans and works_beside_host(self._device) else 0
        finished = in_order(jobs, workers, max_waiting=MAX_UNFINISHED, name="samfast-clean")
        with batcher, closing(groups), closing(segmented), closing(finished):
            while True:
                try:
                    with inference_modes(self._device):  # left before the caller's code runs
                        records = next(finished, None)
                        if records is None:
                            return
                except Exception:
                    # The caller may go on with the same iterator, so its thread is waited for.
                    source.abandonable = False
                    raise
                yield records

    def _groups(
        self,
        images: Iterator[ImageLike | LoadedImage | SamfastError],
        options: AutomaticOptions,
        make: Callable[..., Batch],
    ) -> Generator[CropGroup[Batch], None, None]:
        """The crops of all images, batch_size at a time."""
        crops: list[Crop] = []
        pixels: list[LoadedImage] = []
        number = 0
        while True:
            try:
                image = load_or_raise(next(images), number)
                input_size(image.size, self._model.side, image.name)  # its error has the name
                image_crops = cut_image(number, image.size, options, self._model)
            except StopIteration:
                if crops:
                    yield self._group(make, crops, pixels)
                return
            except Exception as error:  # raised when all images before are done
                yield self._group(make, crops, pixels, (number, error))
                return
            for crop in image_crops:
                x0, y0, x1, y1 = crop.box
                crops.append(crop)
                pixels.append(LoadedImage(image.pixels[y0:y1, x0:x1], image.name))
                if len(crops) == self._batch_size:
                    yield self._group(make, crops, pixels)
                    crops, pixels = [], []
            number += 1

    def _group(
        self,
        make: Callable[..., Batch],
        crops: list[Crop],
        pixels: list[LoadedImage],
        failure: tuple[int, Exception] | None = None,
    ) -> CropGroup[Batch]:
        if not crops:
            return CropGroup([], ImageBatch(torch.empty(0), (), ()), failure)
        return CropGroup(crops, make(pixels, already_loaded), failure)

    def _decode_points(
        self,
        features: Tensor,
        crops: Sequence[tuple[int, Tensor]],
        min_iou: float | None = None,
    ) -> DecoderOutput:
        """The output for one foreground point an object (`PointModel.decode`)."""
        points = crops[0][1] if len(crops) == 1 else torch.cat([points for _, points in crops])
        labels = torch.ones(points.shape[:2], dtype=torch.int64)
        offsets = (0, *accumulate(len(points) for _, points in crops))
        images = tuple(place for place, _ in crops)
        prompts = PackedPrompts(points, labels, None, None, offsets, images)
        # Many logits wait in memory, and the decoder's dtype loses nothing.
        return self._decode(features, [prompts], multimask=True, min_iou=min_iou, keep_dtype=True)
