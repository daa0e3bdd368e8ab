"""SamFast: images in, embeddings; embeddings and prompts in, masks; or everything in an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.segmenter import Segmenter
from samfast.checkpoints import quantized_checkpoint, resolve
from samfast.checkpoints.fingerprint import fingerprint
from samfast.checkpoints.identify import config_of
from samfast.checkpoints.state_dict import load_checkpoint, load_into
from samfast.decoding import decoder
from samfast.decoding.decoder_output import DecoderOutput
from samfast.decoding.nested_decoder import nested
from samfast.device.inference_modes import inference_modes
from samfast.device.parameter_watcher import ParameterWatcher
from samfast.device.prefetch import prefetch
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import upload
from samfast.encoding import encoder
from samfast.errors import EmbeddingsError, InputError, PromptError, UnsupportedRecipeError
from samfast.images import Batcher, ImageLike, LoadedImage, load_image
from samfast.images.device_preprocess import on_device, takes_raw_images
from samfast.linear import QuantizedLinear, SparseLinear
from samfast.masks import postprocess
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import Sam, build
from samfast.prompts import check_jagged, device_checks, group
from samfast.prompts.flat_prompts import Flat
from samfast.recipes import Recipe, apply, choose, get, sparsify
from samfast.recipes.choose import BUDGET, check_budget
from samfast.recipes.evidence import checkpoint_fingerprint
from samfast.types import (
    PIXEL_MEAN,
    PIXEL_STD,
    Answers,
    Embeddings,
    ImageBatch,
    Masks,
    PromptBatch,
    PromptGroup,
    Prompts,
    RawImageBatch,
    Size,
)

PREPROCESSING = "rgb-uint8/pillow-bilinear-long-side/imagenet-mean-std/zero-pad"
"""Names how pixels reach the encoder; part of every fingerprint."""

Load = Callable[[ImageLike | LoadedImage, int], LoadedImage]
"""Loads an image, whose number among all is for messages."""

ASK_LESS = "ask for fewer objects or images in one call, or close what else uses the GPU"
"""What to do where the memory does not suffice for a predict."""


@torch.inference_mode(False)
def load(
    name: str | None = "vit_xs",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    recipe: str | Recipe = "auto",
    batch_size: int | None = None,
    image_size: int | None = None,
    accuracy_budget: float = BUDGET,
) -> SamFast:
    """A SAM, ready to be asked.

    name        "vit_xs", "vit_b", "vit_l" or "vit_h"; None: whatever the checkpoint holds
    checkpoint  a file, directory or Hugging Face id; "random" for random weights (benchmarks);
                None: the packaged weights (vit_xs), else those in the user's cache, downloaded
                there once
    device      "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one
    recipe      a name in `samfast.recipes.RECIPES`, a Recipe, or "auto"; `SamFast.describe` says
                what was chosen
    batch_size  images encoded at a time; None: 1 on a CPU, 8 on a GPU
    image_size  the model's input side in pixels, a multiple of 16; None: the one the checkpoint was
                trained at (1024 for every public one). Tables of positions are resized when they
                differ
    accuracy_budget
                points of mean IoU that "auto" may give up where that was measured of this
                checkpoint; it never rounds further than to bfloat16 or float16 without such a
                measurement (`samfast calibrate`)

    Raises CheckpointError, RecipeError and what derives from them.
    """
    place = _device(device)
    if name is not None and name not in CONFIGS:
        raise InputError(f"unknown model {name!r}; there are {', '.join(CONFIGS)}")
    check_budget(accuracy_budget)
    known = recipe if isinstance(recipe, Recipe) else None if recipe == "auto" else get(recipe)
    file = None  # a checkpoint that was quantized or pruned once and saved
    if checkpoint == "random":
        if name is None:
            raise InputError("checkpoint='random' needs a model's name")
        sam, source = random_weights(_sized(CONFIGS[name], image_size)), "random weights"
    else:
        path = resolve(name, checkpoint)
        file = quantized_checkpoint.find(path)
        if file is None:
            name, state = load_checkpoint(path, name)
        else:
            if known is not None:
                file.agree(known)
            name, state, layers = file.read(name)
        sam, source = _empty(_sized(config_of(state, str(path)), image_size)), str(path)
        source = "; ".join((source, *load_into(sam, state, source)))
    if batch_size is None:
        batch_size = 1 if place.type == "cpu" else 8
    elif batch_size < 1:
        raise InputError(f"batch_size={batch_size}; give at least 1")
    digest = fingerprint(sam.image_encoder, _beside(sam))
    if file is not None:
        if sam.image_encoder.img_size == config_of(state).image_size:
            digest = file.fingerprint
        file.restore(sam, layers)
    if known is None:
        choice = choose(
            place,
            fingerprint=checkpoint_fingerprint(sam, digest) if file is None else None,
            model=name,
            batch_size=batch_size,
            budget=accuracy_budget,
            random=checkpoint == "random",
        )
        recipe_name, reason, chosen = choice.name, f"auto: {choice.reason}", get(choice.name)
        if file is not None:
            recipe_name, chosen, own = file.complete(chosen, place)
            reason = f"{reason}; {own}"
    elif isinstance(recipe, Recipe):
        recipe_name, reason, chosen = "custom", "given", known
    else:
        recipe_name, reason, chosen = recipe, "asked for", known
    if checkpoint == "random" and chosen.sparsify is not None:
        sparsify.by_magnitude(sam, chosen)
    apply(sam, chosen, place)
    return SamFast(
        sam,
        name=name,
        recipe=chosen,
        recipe_name=recipe_name,
        reason=reason,
        source=source,
        batch_size=batch_size,
        fingerprint=digest,
    )


class SamFast:
    """A SAM under a recipe; `samfast.load` makes one.

    model        the plain `Sam` module, Meta's module tree and state-dict keys
    name         of the model, as in `samfast.model.config.CONFIGS`
    recipe       what was applied to it, and recipe_name, its name, or "custom"
    batch_size   images encoded at a time
    encode       the image encoder as the recipe runs it: normalised pixels (B, 3, S, S) float32 on
                 the device, to embeddings (B, 256, S / 16, S / 16)
    decode       prompt encoder and mask decoder as the recipe runs them
    """

    def __init__(
        self,
        model: Sam,
        *,
        name: str,
        recipe: Recipe,
        recipe_name: str = "custom",
        reason: str = "given",
        source: str = "a model in memory",
        batch_size: int = 1,
        fingerprint: str | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.recipe = recipe
        self.recipe_name = recipe_name
        self.reason = reason
        self.source = source
        self.batch_size = batch_size
        self.encode = encoder.build(
            model, recipe, batch_size=batch_size, device=self.device, name=name
        )
        self.decode = decoder.build(model, recipe, device=self.device)
        self._watch = ParameterWatcher(model.image_encoder)
        self._digest = None if fingerprint is None else (self._watch.marks(), fingerprint)

    @property
    def device(self) -> torch.device:
        """Where the model is; results are there too."""
        return self.model.device

    @property
    def image_size(self) -> int:
        """The model's input side in pixels."""
        return self.model.image_encoder.img_size

    @property
    def fingerprint(self) -> str:
        """Names the encoder's weights and the preprocessing; the same for every recipe of one
        checkpoint.

        SHA-256 over the encoder's parameters rounded to bfloat16, before the recipe was applied to
        them. If they are changed later, over what they are then; that waits for the GPU once.
        """
        if self._watch.module is not self.model.image_encoder:
            self._watch = ParameterWatcher(self.model.image_encoder)
        now = self._watch.marks()
        if self._digest is None or self._digest[0] != now:
            self._digest = now, fingerprint(self.model.image_encoder, _beside(self.model))
        return self._digest[1]

    @torch.no_grad()
    def embed(self, images: Sequence[ImageLike | LoadedImage]) -> Embeddings:
        """Image embeddings of a list of images of any sizes.

        images   paths, PIL images, (H, W, 3) uint8 arrays or (3, H, W) uint8 tensors; of more than
                 one batch they are loaded on threads, a batch ahead of the encoder
        Raises ImageError, naming the image, before anything is encoded of its batch;
        DeviceMemoryError if the GPU runs out of memory with half of batch_size too.
        """
        if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence):
            raise InputError(
                f"{type(images).__name__} instead of a list of images; wrap it: [image]"
            )
        if not images:
            raise InputError("an empty list of images; give at least one")
        features: list[Tensor] = []
        originals: list[Size] = []
        inputs: list[Size] = []
        halving = RetryOnOOM("lower batch_size, or close what else uses the GPU")
        batches = self._batches(images, _loader())
        # The next one's images are loaded while this one is encoded.
        ready = prefetch(batches) if len(images) > self.batch_size else batches
        with closing(batches), closing(ready):
            for batch in ready:
                features += halving.each(len(batch), self.batch_size, partial(self._encoded, batch))
                originals += batch.original_sizes
                inputs += batch.input_sizes
        joined = features[0] if len(features) == 1 else halving.whole(lambda: torch.cat(features))
        return Embeddings(joined, tuple(originals), tuple(inputs), self.fingerprint)

    @torch.no_grad()
    def predict(
        self, embeddings: Embeddings, prompts: Sequence[Prompts], *, multimask: bool = True
    ) -> list[Masks]:
        """The masks of each image's prompts.

        prompts    one Prompts an image, any number of objects each
        multimask  three masks an object, for prompts that may mean several things, or the one of
                   the single-mask token
        returns    one Masks an image, on the model's device

        Raises EmbeddingsError for embeddings of another model or preprocessing, PromptError for
        prompts that do not fit, DeviceMemoryError if the GPU runs out of memory with half as many
        objects at a time too.
        """
        self._check(embeddings)
        if isinstance(prompts, Prompts) or not isinstance(prompts, Sequence):
            raise PromptError(
                f"one {type(prompts).__name__} instead of a list of Prompts, one an image; wrap "
                "it: [prompts]"
            )
        if len(prompts) != len(embeddings):
            raise PromptError(
                f"prompts for {len(prompts)} images but embeddings of {len(embeddings)}; give one "
                "each"
            )
        groups = group(
            prompts,
            embeddings.original_sizes,
            embeddings.input_sizes,
            self.model.prompt_encoder.mask_input_size,
        )
        decoded = self.decode(embeddings.features, groups, multimask, halving=RetryOnOOM(ASK_LESS))
        return self._masks(embeddings, groups, decoded)

    @torch.no_grad()
    def predict_batch(
        self,
        embeddings: Embeddings,
        prompts: PromptBatch | Tensor,
        labels: Tensor | None = None,
        *,
        multimask: bool = True,
    ) -> Answers:
        """The answers for all images at once, at low resolution, from prompts that are packed
        already.

        prompts    a PromptBatch (`samfast.prompts.packing`), which is in input pixels; or points
                   (B, n, K, 2), XY in pixels of the original images, as a nested tensor of layout
                   torch.jagged, n differing
        labels     of points, (B, n, K), jagged with the same offsets: 1, 0, -1, or PADDING_LABEL
                   for an object of fewer points
        returns    jagged nested tensors on the model's device, with the offsets of the points where
                   these are there

        Prompts may lie on the host or on the device. There nobody looks at them: what does not fit
        is told by `Answers.cpu`. Whatever the recipe's `prompts`, all images are decoded together,
        as "nested" for "looped".

        Raises EmbeddingsError for embeddings of another model or preprocessing, PromptError for
        prompts that do not fit, DeviceMemoryError if the GPU runs out of memory with half as many
        objects at a time too.
        """
        self._check(embeddings)
        images = range(len(embeddings))
        if isinstance(prompts, PromptBatch):
            if labels is not None:
                raise PromptError("labels beside a PromptBatch, which has its own; leave them out")
            if len(prompts.offsets) - 1 != len(images):
                raise PromptError(
                    f"prompts for {len(prompts.offsets) - 1} images but embeddings of "
                    f"{len(images)}; give one each"
                )
            flat = self._placed(Flat.of(PromptGroup(tuple(images), prompts)))
            codes = flat.device_checks(embeddings.input_sizes)
        else:
            check_jagged(prompts, labels, len(images))
            scales = [
                (new_w / old_w, new_h / old_h)
                for (old_h, old_w), (new_h, new_w) in zip(
                    embeddings.original_sizes, embeddings.input_sizes, strict=True
                )
            ]
            flat = self._placed(Flat.of_jagged(prompts, labels, scales))
            codes = flat.device_checks(embeddings.input_sizes) | device_checks.ragged(
                prompts, labels
            ).to(flat.offsets.device)
        if flat.on_host:
            device_checks.Faults(codes, images, flat.offsets)()
        decoded = self.decode.at_once(
            embeddings.features, flat, multimask, halving=RetryOnOOM(ASK_LESS)
        )
        offsets = upload(flat.offsets, self.device)
        codes = decoded.codes if flat.on_host else codes | decoded.codes
        with inference_modes(self.device):
            low_res, iou = nested(decoded.low_res, offsets), nested(decoded.iou, offsets)
        return Answers(low_res, iou, device_checks.Faults(codes, images, offsets))

    def segment(
        self, images: Sequence[ImageLike | LoadedImage], **options: Any
    ) -> list[list[dict[str, Any]]]:
        """Everything in each image: a list of records an image, with the original generator's keys.

        On a GPU images and their crops are encoded `batch_size` at a time, and the next ones while
        the last ones' masks are made. Memory does not grow with their number, beside the results.

        options  those of `SamAutomaticMaskGenerator`, and max_memory (see `AutomaticOptions`);
                 output_mode is "coco_rle" unless said otherwise

        Raises InputError for options that cannot be used, ImageError for such an image,
        DeviceMemoryError if the GPU runs out of memory with chunks of half the size too,
        NumericsError, naming the image, for answers that hold NaN or infinity.
        """
        return list(self.segment_each(images, **options))

    def segment_each(
        self,
        images: Sequence[ImageLike | LoadedImage] | Iterator[ImageLike | LoadedImage],
        **options: Any,
    ) -> Generator[list[dict[str, Any]], None, None]:
        """As `segment`, the records of one image after another as they are done.

        images   a list, or an iterator of any length, which is asked for images on another thread,
                 some ahead of what has been answered; that thread ends with this iterator, also
                 where that is closed early
        """
        if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence | Iterator):
            raise InputError(
                f"{type(images).__name__} instead of a list of images; wrap it: [image]"
            )
        try:
            chosen = AutomaticOptions(**{"output_mode": "coco_rle", **options})
        except TypeError as error:
            raise InputError(
                f"segment: {str(error).replace('AutomaticOptions.__init__() ', '')}"
            ) from error
        segmenter = Segmenter(
            self.encode,
            self.decode,
            side=self.image_size,
            mask_threshold=self.model.mask_threshold,
            device=self.device,
            batch_size=self.batch_size,
        )
        alone = isinstance(images, Sequence) and len(images) == 1
        yield from segmenter(iter(images), _loaded, chosen, alone=alone)

    def describe(self) -> str:
        """What was loaded, which recipe runs it and why, in lines for a person."""
        parameters = sum(p.numel() for p in self.model.parameters())
        for module in self.model.modules():
            if isinstance(
                module, QuantizedLinear | SparseLinear
            ):  # whose weights are no parameters
                parameters += module.in_features * module.out_features
                parameters += 0 if module.bias is None else module.out_features
        return "\n".join(
            (
                f"model     {self.name}, {parameters / 1e6:.1f} M parameters, input "
                f"{self.image_size} px",
                f"weights   {self.source}",
                f"device    {self.device}",
                f"recipe    {self.recipe_name} ({self.recipe})",
                f"why       {self.reason}",
                f"batch     {self.batch_size} image{'s' if self.batch_size > 1 else ''} encoded at "
                "a time",
                f"encoder   {self.encode.describe()}",
                f"decoder   {self.decode.describe()}",
            )
        )

    def _batches(
        self, images: Sequence[ImageLike | LoadedImage], load: Load
    ) -> Generator[ImageBatch | RawImageBatch, None, None]:
        """The images, batch_size at a time, as their way to the device takes them."""
        with Batcher(self.image_size, pin=self.device.type == "cuda") as batcher:
            make = batcher.bytes if takes_raw_images(self.device) else batcher.floats
            for start in range(0, len(images), self.batch_size):
                yield make(images[start : start + self.batch_size], load, start)

    def _encoded(self, batch: ImageBatch | RawImageBatch, start: int, stop: int) -> Tensor:
        return self.encode(on_device(batch, self.device, slice(start, stop)))

    def _check(self, embeddings: Embeddings) -> None:
        if not isinstance(embeddings, Embeddings):
            raise EmbeddingsError(
                f"{type(embeddings).__name__} instead of what SamFast.embed returned"
            )
        if embeddings.fingerprint != self.fingerprint:
            raise EmbeddingsError(
                "these embeddings were made by another model or preprocessing "
                f"({embeddings.fingerprint[:12]}) than "
                f"this {self.name} ({self.fingerprint[:12]}); embed the images again with this one"
            )

    def _placed(self, flat: Flat) -> Flat:
        """Prompts where they are: on the host, or on the model's device, and on no third one."""
        return flat if flat.on_host else flat.to(self.device)

    def _masks(
        self,
        embeddings: Embeddings,
        groups: Sequence[PromptGroup],
        decoded: Sequence[DecoderOutput],
    ) -> list[Masks]:
        """Each image's answer; those of images of equal sizes are made at once and share their
        memory.
        """
        found: dict[int, Masks] = {}
        halving = RetryOnOOM(ASK_LESS)
        for own, answer in zip(groups, decoded, strict=True):
            offsets = own.batch.offsets
            frames = [
                ResizeGeometry(
                    embeddings.input_sizes[i], embeddings.original_sizes[i], self.image_size
                )
                for i in own.images
            ]
            made = self._upscaled(answer.low_res, offsets, frames, halving)
            for image, masks, (start, stop) in zip(
                own.images, made, pairwise(offsets), strict=True
            ):
                part = slice(start, stop)
                codes = answer.codes[part]
                found[image] = Masks(
                    masks,
                    answer.iou[part],
                    answer.low_res[part],
                    device_checks.Faults(codes, (image,), (0, len(codes))),
                )
        return [found[i] for i in range(len(embeddings))]

    def _upscaled(
        self,
        low_res: Tensor,
        offsets: Sequence[int],
        frames: Sequence[ResizeGeometry],
        halving: RetryOnOOM,
    ) -> list[Tensor]:
        """Each image's masks (n, M, H, W); all at once unless the GPU's memory does not suffice for
        that.
        """

        def work(start: int, stop: int) -> list[Tensor]:
            own = [min(max(offset, start), stop) - start for offset in offsets]
            return postprocess.masks_of_images(
                low_res[start:stop], own, frames, self.model.mask_threshold
            )

        count = max(1, len(low_res))  # also no objects at all have masks, of no rows
        made = list(halving.each(count, count, work))
        if len(made) == 1:
            return made[0]
        return [halving.whole(partial(_joined, parts)) for parts in zip(*made, strict=True)]


def _beside(sam: Sam) -> str:
    """What a fingerprint names beside the weights."""
    return f"{PREPROCESSING}/{sam.image_encoder.img_size}"


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all parts, of which one may have them all already."""
    some = [part for part in parts if len(part)] or [parts[0]]
    return some[0] if len(some) == 1 else torch.cat(some)


def _loader() -> Load:
    """`_loaded` for other threads: there too a tensor on a GPU is read after what has been queued
    on this one.
    """
    began = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    streams = [
        torch.cuda.current_stream(i) for i in range(torch.cuda.device_count() if began else 0)
    ]

    def load(image: ImageLike | LoadedImage, index: int) -> LoadedImage:
        if isinstance(image, Tensor) and image.is_cuda:
            with torch.cuda.stream(streams[image.device.index]):
                return _loaded(image, index)
        return _loaded(image, index)

    return load


def _loaded(image: ImageLike | LoadedImage, index: int) -> LoadedImage:
    if isinstance(image, LoadedImage):
        return image
    return load_image(image, None if isinstance(image, str | os.PathLike) else f"image {index}")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"device {device!r}: {str(error).splitlines()[0]}; give cpu or cuda"
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedRecipeError(
            "device 'cuda': this PyTorch sees no NVIDIA GPU; give device='cpu', or install a CUDA "
            "build of torch"
        )
    if (
        place.type == "cuda"
        and place.index is not None
        and place.index >= torch.cuda.device_count()
    ):
        raise InputError(
            f"device {device!r}: there are only {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return place


def _sized(config: SamConfig, image_size: int | None) -> SamConfig:
    """The configuration at another input side."""
    if image_size is None:
        return config
    if image_size < config.patch_size or image_size % config.patch_size:
        raise InputError(
            f"image_size={image_size}; give a positive multiple of {config.patch_size}"
        )
    return replace(config, image_size=image_size)


def _empty(config: SamConfig) -> Sam:
    """A Sam whose parameters have no values yet: drawing random ones for ViT-H takes longer than
    loading it.
    """
    with torch.device("meta"):
        sam = build(config)
    sam.to_empty(device="cpu")
    sam.pixel_mean = torch.tensor(PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(PIXEL_STD).view(-1, 1, 1)
    return sam


def random_weights(config: SamConfig, seed: int = 0) -> Sam:
    """A Sam with random weights, the positions' too, which a fresh one has at zero; the same for a
    seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build(config)
        with torch.no_grad():
            for name, parameter in sam.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    parameter.normal_(std=0.02)
    return sam
