"""SamFast: images in, embeddings; embeddings and prompts in, masks; or everything in an image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import EmbeddingsError, InputError, PromptError, UnsupportedRecipeError
from samfast.images import ImageLike, LoadedImage, input_size, load_image, to_batch
from samfast.linear import QuantizedLinear, SparseLinear
from samfast.masks import everything, upscale
from samfast.masks.options import AutomaticOptions
from samfast.model.checkpoint import load_checkpoint, load_into
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.fingerprint import fingerprint, marks
from samfast.model.identify import config_of
from samfast.model.sam import Sam, build
from samfast.prompts import pack
from samfast.recipes import Recipe, apply, choose, encoder, get, sparsify, stored
from samfast.recipes.choose import BUDGET, check_budget
from samfast.recipes.measured import checkpoint_fingerprint
from samfast.types import PADDING_LABEL, PIXEL_MEAN, PIXEL_STD, Embeddings, Masks, PromptBatch, Prompts, Size
from samfast.weights import resolve

PREPROCESSING = "rgb-uint8/pillow-bilinear-long-side/imagenet-mean-std/zero-pad"
"""Names how pixels reach the encoder; part of every fingerprint."""

OBJECTS_AT_A_TIME = {"cpu": 4, "cuda": 256}
"""Objects that the decoder takes in one call: on a CPU so few that their maps, 4 MiB each, stay in the cache."""


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
    checkpoint  a file, directory or Hugging Face id; "random" for random weights (benchmarks); None: the packaged
                weights (vit_xs), else those in the user's cache, downloaded there once
    device      "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one
    recipe      a name in `samfast.recipes.RECIPES`, a Recipe, or "auto"; `SamFast.describe` says what was chosen
    batch_size  images encoded at a time; None: 1 on a CPU, 8 on a GPU
    image_size  the model's input side in pixels, a multiple of 16; None: the one the checkpoint was trained at
                (1024 for every public one). Tables of positions are resized when they differ
    accuracy_budget
                points of mean IoU that "auto" may give up where that was measured of this checkpoint; it never
                rounds further than to bfloat16 or float16 without such a measurement (`samfast calibrate`)

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
        file = stored.find(path)
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
    encode       the image encoder as the recipe runs it: normalised pixels (B, 3, S, S) float32 on the device, to
                 embeddings (B, 256, S / 16, S / 16)
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
        self.encode = encoder.build(model, recipe, batch_size=batch_size, device=self.device, name=name)
        self._digest = None if fingerprint is None else (marks(model.image_encoder), fingerprint)

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
        """Names the encoder's weights and the preprocessing; the same for every recipe of one checkpoint.

        SHA-256 over the encoder's parameters rounded to bfloat16, before the recipe was applied to them. If they
        are changed later, over what they are then; that waits for the GPU once.
        """
        now = marks(self.model.image_encoder)
        if self._digest is None or self._digest[0] != now:
            self._digest = now, fingerprint(self.model.image_encoder, _beside(self.model))
        return self._digest[1]

    @torch.no_grad()
    def embed(self, images: Sequence[ImageLike | LoadedImage]) -> Embeddings:
        """Image embeddings of a list of images of any sizes.

        images   paths, PIL images, (H, W, 3) uint8 arrays or (3, H, W) uint8 tensors
        Raises ImageError, naming the image, before anything is encoded of its batch.
        """
        if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence):
            raise InputError(f"{type(images).__name__} instead of a list of images; wrap it: [image]")
        if not images:
            raise InputError("an empty list of images; give at least one")
        features: list[Tensor] = []
        originals: list[Size] = []
        inputs: list[Size] = []
        for start in range(0, len(images), self.batch_size):
            batch = to_batch(
                [
                    _loaded(image, start + i)
                    for i, image in enumerate(images[start : start + self.batch_size])
                ],
                self.image_size,
                pin=self.device.type == "cuda",
            )
            features.append(self.encode(_to(batch.pixels, self.device)))
            originals += batch.original_sizes
            inputs += batch.input_sizes
        joined = features[0] if len(features) == 1 else torch.cat(features)
        return Embeddings(joined.contiguous(), tuple(originals), tuple(inputs), self.fingerprint)

    @torch.no_grad()
    def predict(
        self, embeddings: Embeddings, prompts: Sequence[Prompts], *, multimask: bool = True
    ) -> list[Masks]:
        """The masks of each image's prompts.

        prompts    one Prompts an image, any number of objects each
        multimask  three masks an object, for prompts that may mean several things, or the one of the single-mask
                   token
        returns    one Masks an image, on the model's device

        Raises EmbeddingsError for embeddings of another model or preprocessing, PromptError for prompts that do
        not fit.
        """
        self._check(embeddings)
        if isinstance(prompts, Prompts) or not isinstance(prompts, Sequence):
            raise PromptError(
                f"one {type(prompts).__name__} instead of a list of Prompts, one an image; wrap it: [prompts]"
            )
        if len(prompts) != len(embeddings):
            raise PromptError(
                f"prompts for {len(prompts)} images but embeddings of {len(embeddings)}; give one each"
            )
        mask_size = self.model.prompt_encoder.mask_input_size
        batches = []
        for i, (own, original, inner) in enumerate(
            zip(prompts, embeddings.original_sizes, embeddings.input_sizes, strict=True)
        ):
            try:
                batches.append(pack([own], [original], [inner], mask_size))
            except PromptError as error:
                raise PromptError(str(error).replace("image 0", f"image {i}", 1)) from error
        return [
            self._answer(
                embeddings.features[i : i + 1],
                batch,
                embeddings.input_sizes[i],
                embeddings.original_sizes[i],
                multimask,
            )
            for i, batch in enumerate(batches)
        ]

    @torch.no_grad()
    def segment(
        self, images: Sequence[ImageLike | LoadedImage], **options: Any
    ) -> list[list[dict[str, Any]]]:
        """Everything in each image: a list of records an image, with the original generator's keys.

        options  those of `SamAutomaticMaskGenerator`, and max_memory (see `AutomaticOptions`); output_mode is
                 "coco_rle" unless said otherwise

        Raises InputError for options that cannot be used, DeviceMemoryError if the GPU runs out of memory with
        chunks of half the size too.
        """
        return list(self.segment_each(images, **options))

    def segment_each(
        self, images: Sequence[ImageLike | LoadedImage], **options: Any
    ) -> Iterator[list[dict[str, Any]]]:
        """As `segment`, one image at a time as they are done."""
        if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence):
            raise InputError(f"{type(images).__name__} instead of a list of images; wrap it: [image]")
        try:
            chosen = AutomaticOptions(**{"output_mode": "coco_rle", **options})
        except TypeError as error:
            raise InputError(f"segment: {str(error).replace('AutomaticOptions.__init__() ', '')}") from error
        for i, image in enumerate(images):
            with torch.no_grad():
                records = everything.generate(
                    _loaded(image, i).pixels,
                    chosen,
                    self._encode_crop,
                    self._decode_points,
                    side=self.image_size,
                    input_size=input_size,
                    mask_threshold=self.model.mask_threshold,
                    device=self.device,
                    objects_at_a_time=OBJECTS_AT_A_TIME.get(self.device.type, 64),
                )
            yield records

    def describe(self) -> str:
        """What was loaded, which recipe runs it and why, in lines for a person."""
        parameters = sum(p.numel() for p in self.model.parameters())
        for module in self.model.modules():
            if isinstance(module, QuantizedLinear | SparseLinear):  # whose weights are no parameters
                parameters += module.in_features * module.out_features
                parameters += 0 if module.bias is None else module.out_features
        return "\n".join(
            (
                f"model     {self.name}, {parameters / 1e6:.1f} M parameters, input {self.image_size} px",
                f"weights   {self.source}",
                f"device    {self.device}",
                f"recipe    {self.recipe_name} ({self.recipe})",
                f"why       {self.reason}",
                f"batch     {self.batch_size} image{'s' if self.batch_size > 1 else ''} encoded at a time",
                f"encoder   {self.encode.describe()}",
            )
        )

    def _check(self, embeddings: Embeddings) -> None:
        if not isinstance(embeddings, Embeddings):
            raise EmbeddingsError(f"{type(embeddings).__name__} instead of what SamFast.embed returned")
        if embeddings.fingerprint != self.fingerprint:
            raise EmbeddingsError(
                f"these embeddings were made by another model or preprocessing ({embeddings.fingerprint[:12]}) than "
                f"this {self.name} ({self.fingerprint[:12]}); embed the images again with this one"
            )

    def _encode_crop(self, pixels: NDArray[np.uint8]) -> Tensor:
        loaded = [LoadedImage(pixels, "crop", ())]
        batch = to_batch(loaded, self.image_size, pin=self.device.type == "cuda")
        return self.encode(_to(batch.pixels, self.device))

    def _decode_points(self, features: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.ones(points.shape[:2], dtype=torch.int64)
        batch = PromptBatch(points, labels, None, None, (0, len(points)))
        return self._decode(features, batch, multimask=True)

    def _answer(
        self, features: Tensor, batch: PromptBatch, input_size: Size, original_size: Size, multimask: bool
    ) -> Masks:
        low_res, iou = self._decode(features, batch, multimask)
        masks = upscale.to_original(
            low_res, input_size, original_size, self.image_size, self.model.mask_threshold
        )
        return Masks(masks, iou, low_res)

    def _decode(self, features: Tensor, batch: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (P, M, h, w) and IoU (P, M) of one image's objects, float32."""
        step = OBJECTS_AT_A_TIME.get(self.device.type, 64)
        parts = [
            self._decode_part(features, _part(batch, start, start + step), multimask)
            for start in range(0, max(1, len(batch)), step)
        ]
        return torch.cat([low_res for low_res, _ in parts]), torch.cat([iou for _, iou in parts])

    def _decode_part(self, features: Tensor, batch: PromptBatch, multimask: bool) -> tuple[Tensor, Tensor]:
        sam, device = self.model, self.device
        dtype = sam.mask_decoder.iou_token.weight.dtype
        if len(batch) == 0:
            size = sam.prompt_encoder.mask_input_size
            count = sam.mask_decoder.num_multimask_outputs if multimask else 1
            return torch.empty(0, count, *size, device=device), torch.empty(0, count, device=device)
        points = None
        if batch.coords is not None and batch.labels is not None:
            points = (_to(batch.coords, device), _to(batch.labels, device))
        boxes = None if batch.boxes is None else _to(batch.boxes, device)
        masks = None if batch.masks is None else _to(batch.masks, device)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        low_res, iou = sam.mask_decoder(
            image_embeddings=features.to(dtype),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **_token_mask(batch, sparse.shape[1], device),
        )
        return low_res.float(), iou.float()


def _to(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; from the host to a GPU without waiting, which takes pinned memory."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _token_mask(batch: PromptBatch, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """The decoder's token_mask, where objects have different numbers of points; nothing where they have not."""
    if batch.labels is None or not bool((batch.labels == PADDING_LABEL).any()):
        return {}
    real = torch.ones(len(batch), tokens, dtype=torch.bool)
    points = batch.labels.shape[1]
    real[:, :points] = batch.labels != PADDING_LABEL
    if batch.boxes is None:  # an object without any point has no "not a point" token either
        real[:, points] = real[:, :points].any(dim=1)
    return {"token_mask": _to(real, device)}


def _part(batch: PromptBatch, start: int, stop: int) -> PromptBatch:
    """Some objects of a batch of one image."""
    if start == 0 and stop >= len(batch):
        return batch
    part = slice(start, stop)
    coords, labels = batch.coords, batch.labels
    if coords is not None and labels is not None:
        coords, labels = coords[part], labels[part]
        most = int((labels != PADDING_LABEL).sum(1).max())
        coords, labels = (coords[:, :most], labels[:, :most]) if most else (None, None)
    boxes = None if batch.boxes is None else batch.boxes[part]
    masks = None if batch.masks is None else batch.masks[part]
    return PromptBatch(coords, labels, boxes, masks, (0, min(stop, len(batch)) - start))


def _beside(sam: Sam) -> str:
    """What a fingerprint names beside the weights."""
    return f"{PREPROCESSING}/{sam.image_encoder.img_size}"


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
        raise InputError(f"device {device!r}: {str(error).splitlines()[0]}; give cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedRecipeError(
            "device 'cuda': this PyTorch sees no NVIDIA GPU; give device='cpu', or install a CUDA build of torch"
        )
    if place.type == "cuda" and place.index is not None and place.index >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r}: there are only {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return place


def _sized(config: SamConfig, image_size: int | None) -> SamConfig:
    """The configuration at another input side."""
    if image_size is None:
        return config
    if image_size < config.patch_size or image_size % config.patch_size:
        raise InputError(f"image_size={image_size}; give a positive multiple of {config.patch_size}")
    return replace(config, image_size=image_size)


def _empty(config: SamConfig) -> Sam:
    """A Sam whose parameters have no values yet: drawing random ones for ViT-H takes longer than loading it."""
    with torch.device("meta"):
        sam = build(config)
    sam.to_empty(device="cpu")
    sam.pixel_mean = torch.tensor(PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(PIXEL_STD).view(-1, 1, 1)
    return sam


def random_weights(config: SamConfig, seed: int = 0) -> Sam:
    """A Sam with random weights, the positions' too, which a fresh one has at zero; the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build(config)
        with torch.no_grad():
            for name, parameter in sam.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    parameter.normal_(std=0.02)
    return sam
