"""SamFast: images to embeddings, embeddings and prompts to masks, or images to all their masks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from samfast.automatic_masks.options import SegmentOptions, check_names
from samfast.automatic_masks.segmenter import Segmenter
from samfast.checkpoints.fingerprint import EncoderFingerprint
from samfast.decoding.decoded_prompts import decode_prompts
from samfast.decoding.image_masks import batch_answers, image_masks
from samfast.device.module_snapshot import ModuleSnapshot
from samfast.device.retry import FEWER_IMAGES, FEWER_OBJECTS, RetryOnOOM
from samfast.encoding.check_embeddings import check_embeddings
from samfast.images import ImageLike, Images, LoadedImage
from samfast.images.batch_loading import Batch, check_list, each_loaded, loaded_batches
from samfast.images.device_preprocess import on_device
from samfast.model.sam import Sam
from samfast.progress import reporting
from samfast.prompted_masks.predict_each import PredictEach
from samfast.prompts import batch_prompts, check_count
from samfast.provenance import Provenance
from samfast.recipes import Recipe, Runtime
from samfast.scenes.scene_methods import SceneMethods
from samfast.types import (
    Answers,
    Embeddings,
    MaskRecords,
    Masks,
    PackedPrompts,
    Progress,
    Prompts,
    Size,
)


class SamFast(PredictEach, SceneMethods):
    """A SAM under a recipe; `samfast.load` makes one. For scenes: `samfast.scenes`.

    model       the plain `Sam` module, Meta's module tree and state-dict keys
    runtime     its encoder and decoder as `samfast.recipes.apply` built them; `modules`, the
                modules of the model that these were built from
    provenance  what `describe` tells, and the checkpoint's own defaults of `segment`

    >>> sam = samfast.load("vit_b", device="cuda")
    >>> masks = sam.predict(["photo.jpg"], [Prompts(points=[[[320, 240]]], labels=[[1]])])[0]
    >>> masks.best()  # (1, H, W) bool
    """

    def __init__(self, model: Sam, runtime: Runtime, provenance: Provenance) -> None:
        self.model, self.runtime, self.provenance = model, runtime, provenance
        self.encode, self.decode = runtime.encode, runtime.decode
        self.name, self.recipe_name = provenance.name, provenance.recipe_name
        self.reason, self.source = provenance.reason, provenance.source
        self._fingerprint = EncoderFingerprint(model, provenance.fingerprint)
        self.modules = ModuleSnapshot(model.image_encoder, model.prompt_encoder, model.mask_decoder)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was applied to the model."""
        return self.runtime.recipe

    @property
    def batch_size(self) -> int:
        """Images encoded at a time."""
        return self.runtime.batch_size

    @property
    def device(self) -> torch.device:
        """The device of the model and of the results."""
        return self.model.device

    @property
    def image_size(self) -> int:
        """The model's input side in pixels."""
        return self.model.image_encoder.img_size

    @property
    def fingerprint(self) -> str:
        """Names the encoder's weights and the preprocessing; equal for all recipes of a checkpoint.

        SHA-256 over the encoder's parameters rounded to bfloat16, before the recipe was applied to
        them. If they are changed later, it is computed again, which waits for the GPU once.
        """
        return self._fingerprint()

    @torch.no_grad()
    def embed(self, images: Images, *, progress: Progress | bool = False) -> Embeddings:
        """Image embeddings of a list of images of any sizes.

        images    paths, PIL images, (H, W, 3) uint8 arrays or (3, H, W) uint8 tensors; those of the
                  next batch are loaded on threads while one is encoded
        progress  called with the number of images that were handed to the encoder so far and that
                  of all; True: a bar of tqdm

        Raises ImageError, naming the image, before anything of its batch is encoded;
        DeviceMemoryError if half of batch_size is too much too; NumericsError, naming the image,
        for NaN or infinity: on a GPU not here but where the embeddings are predicted from or saved.
        """
        features: list[Tensor] = []
        originals, inputs = list[Size](), list[Size]()
        retry = RetryOnOOM(FEWER_IMAGES)
        loading = loaded_batches(images, self.image_size, self.batch_size, self.device)
        with loading as batches, reporting(progress, len(images), "image") as advance:
            for batch in batches:
                encode = partial(self._encode_batch, batch)
                features += retry.map_chunks(len(batch), self.batch_size, encode)
                originals += batch.original_sizes
                inputs += batch.input_sizes
                advance(len(batch))
        joined = features[0] if len(features) == 1 else retry.run(lambda: torch.cat(features))
        embeddings = Embeddings(joined, tuple(originals), tuple(inputs), self.fingerprint)
        if self.device.type == "cpu":
            embeddings.verify()
        return embeddings

    def _encode_batch(self, batch: Batch, start: int, stop: int) -> Tensor:
        return self.encode(on_device(batch, self.device, slice(start, stop)))

    @torch.no_grad()
    def predict(
        self,
        embeddings: Embeddings | Images,
        prompts: Sequence[Prompts],
        *,
        multimask: bool = True,
        progress: Progress | bool = False,
    ) -> list[Masks]:
        """The masks of each image's prompts.

        embeddings  of the images; or a list of images, which are embedded first, as by `embed`
        prompts     one Prompts per image, any number of objects each
        multimask   three masks per object, for ambiguous prompts, or the single-mask token's one
        progress    as that of `embed`, for a list of images
        returns     one Masks per image, on the model's device

        >>> (masks,) = sam.predict(["photo.jpg"], [Prompts(boxes=[[40, 30, 200, 160]])])

        Raises the errors of `embed` for a list of images, EmbeddingsError for embeddings of another
        model or preprocessing, PromptError for prompts that do not fit, DeviceMemoryError if half
        as many objects at a time are too many too, and NumericsError, naming image and object, for
        NaN or infinity: at once on a CPU, on a GPU when values are read on the host.
        """
        if isinstance(embeddings, Sequence):
            check_list(embeddings, Sequence)
            check_count(prompts, len(embeddings), "a list of")
            embeddings = self.embed(embeddings, progress=progress)
        self._check(embeddings)
        decoded = decode_prompts(self.model, self.decode, embeddings, prompts, multimask)
        return image_masks(decoded, RetryOnOOM(FEWER_OBJECTS))

    def _check(self, embeddings: Embeddings) -> None:
        check_embeddings(embeddings, self.model, self.fingerprint, self.name)

    @torch.no_grad()
    def predict_batch(
        self,
        embeddings: Embeddings,
        prompts: PackedPrompts | Tensor,
        labels: Tensor | None = None,
        *,
        multimask: bool = True,
    ) -> Answers:
        """The low-resolution answers for all images at once, from prompts that are packed already.

        prompts    `samfast.PromptBatch`, in input pixels (`samfast.prompts.pack`); or points
                   (B, n, K, 2), XY in pixels of the original images, as a nested tensor of layout
                   torch.jagged, n differing
        labels     of points, (B, n, K), jagged with the same offsets: 1, 0, -1, or PADDING_LABEL
                   for an object of fewer points
        returns    jagged nested tensors on the model's device, with the offsets of the points where
                   these are on it

        Prompts on the device are not read; those that do not fit are reported by `Answers.cpu`.
        Recipes with prompts="looped" decode as with "nested". Raises as `predict`.
        """
        self._check(embeddings)
        packed, checks = batch_prompts(prompts, labels, embeddings, self.device)
        output = self.decode.batched(
            embeddings.features, [packed], multimask=multimask, retry=RetryOnOOM(FEWER_OBJECTS)
        )
        return batch_answers(output, checks, self.device)

    def segment(
        self,
        images: Images,
        *,
        progress: Progress | bool = False,
        **options: Unpack[SegmentOptions],
    ) -> list[MaskRecords]:
        """All masks of each image: a list of records per image, with the original generator's keys,
        and in its `counts` how many masks each filter left.

        On a GPU images and their crops are encoded `batch_size` at a time, the next ones while
        masks of the last ones are made. Memory is bounded, beside the results.

        progress  called after each batch of points with the points done so far and those of all
                  images together; an image and its crops have `AutomaticOptions.point_count`.
                  True: a bar of tqdm
        options   those of `SamAutomaticMaskGenerator`, and max_memory (see `AutomaticOptions`);
                  output_mode is "coco_rle" by default, and thresholds are the checkpoint's own
                  (`provenance.automatic`)

        Raises InputError for wrong options, ImageError for an image that cannot be used,
        DeviceMemoryError if the GPU runs out of memory with chunks of half the size too,
        NumericsError, naming the image, for answers that hold NaN or infinity.
        """
        return list(self.segment_each(images, progress=progress, **options))

    def segment_each(
        self,
        images: Images | Iterator[ImageLike | LoadedImage],
        *,
        progress: Progress | bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Generator[MaskRecords, None, None]:
        """As `segment`, the records of one image after another as they are done.

        images    a list, or an iterator of any length. Another thread takes images from it, some
                  ahead of the results, and ends with the generator, also when that is closed early.
                  Closing does not wait for an iterator that blocks; an item that comes later is
                  lost
        progress  as that of `segment`; the total for an iterator is None
        """
        check_list(images, Sequence | Iterator)
        check_names(options)
        chosen = self.provenance.automatic_options(options)
        segmenter = Segmenter(self.model, self.encode, self.decode, self.batch_size)
        count = len(images) if isinstance(images, Sequence) else None
        total = None if count is None else count * chosen.point_count
        loaded = each_loaded(images, self.device)
        with reporting(progress, total, "point") as done, loaded as each:
            yield from segmenter(each, chosen, single=count == 1, points_done=done)

    def __repr__(self) -> str:
        return f"<SamFast {self.name} on {self.device}, recipe {self.recipe_name}>"

    def describe(self) -> str:
        """The model, its weights, its recipe and the reason for it, in lines for a person."""
        return self.provenance.describe(self.model, self.runtime)
