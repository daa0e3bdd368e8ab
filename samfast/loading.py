"""`samfast.load`: a checkpoint, a device and a recipe to a SamFast, with reasons for `describe`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from typing import Any

import torch

from samfast.checkpoints import quantized_checkpoint, resolve
from samfast.checkpoints.fingerprint import encoder_fingerprint
from samfast.checkpoints.identify import config_of
from samfast.checkpoints.lookup import automatic_options
from samfast.checkpoints.quantized_checkpoint import QuantizedCheckpoint, QuantizedWeights
from samfast.checkpoints.state_dict import load_checkpoint, load_into
from samfast.device.early_start import start_early
from samfast.device.machine import resolve_device
from samfast.device.skip_random_init import SkipRandomInit
from samfast.engine import SamFast
from samfast.errors import InputError, shown
from samfast.linear.sparsify_layers import prune_by_magnitude
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import Sam, build
from samfast.provenance import Provenance
from samfast.recipes import Recipe, apply, choose, get, refusal
from samfast.recipes.choose import BUDGET, check_budget
from samfast.recipes.evidence import checkpoint_fingerprint
from samfast.recipes.table import name_of

_LOG = logging.getLogger("samfast")

RANDOM = "random weights"
"""The source of `checkpoint="random"`, for `SamFast.describe`."""

MAX_IMAGE_SIZE = 8192
"""Largest input side in pixels: there a batch of one is 64 times the public models', and the tables
of positions take a gigabyte."""


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
    """Load a SAM, ready for images and prompts.

    name        "vit_xs", "vit_b", "vit_l" or "vit_h"; None: the model that the checkpoint holds
    checkpoint  a file, directory or Hugging Face id; "random" for random weights (benchmarks);
                None: the packaged weights (vit_xs), else those in the user's cache, downloaded once
    device      "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one
    recipe      a name in `samfast.recipes.RECIPES`, a Recipe, or "auto"; `SamFast.describe` says
                which was chosen and why
    batch_size  images encoded at a time; None: 1 on a CPU, 8 on a GPU
    image_size  the model's input side in pixels, a multiple of 16 up to 8192; None: the one the
                checkpoint was trained at (1024 for every public one). Tables of positions are
                resized when they differ
    accuracy_budget
                points of mean IoU that "auto" may give up where the loss was measured on this
                checkpoint; without such a measurement (`samfast calibrate`) it never rounds
                further than to bfloat16 or float16

    Raises CheckpointError, RecipeError, and InputError for the other arguments.

    >>> sam = samfast.load("vit_b", device="cuda", recipe="fused", batch_size=8)
    >>> print(sam.describe())
    """
    target = resolve_device(device)
    _check_arguments(name, checkpoint, batch_size, image_size)
    check_budget(accuracy_budget)
    start_early(target)
    given = recipe if isinstance(recipe, Recipe) else None if _is_auto(recipe) else get(recipe)
    if batch_size is None:
        batch_size = 1 if target.type == "cpu" else 8
    random = checkpoint == "random"
    weights = _random(name, image_size) if random else _read(name, checkpoint, image_size, given)
    if given is None:
        chosen, recipe_name, reason = _choose(weights, target, batch_size, accuracy_budget)
    elif isinstance(recipe, str):
        chosen, recipe_name, reason = given, recipe, "asked for"
    else:
        chosen, recipe_name, reason = given, "custom", "given"
    if weights.file is not None:
        weights.file.restore(weights.sam, weights.quantized)
    if random and chosen.sparsify is not None:
        prune_by_magnitude(weights.sam, chosen.sparse_layers)
    _LOG.info(
        "%s from %s on %s under recipe %s (%s), batches of %d; %s",
        weights.name,
        weights.source,
        target,
        recipe_name,
        chosen,
        batch_size,
        reason,
    )
    return SamFast(
        weights.sam,
        apply(weights.sam, chosen, target, batch_size=batch_size, name=weights.name),
        Provenance(
            weights.name,
            recipe_name,
            reason,
            weights.source,
            weights.fingerprint,
            weights.automatic,
        ),
    )


def _is_auto(recipe: object) -> bool:
    return isinstance(recipe, str) and recipe == "auto"


def _check_arguments(name: Any, checkpoint: Any, batch_size: Any, size: Any) -> None:
    """InputError for arguments of `load` of a wrong type or out of range."""
    if name is not None and not (isinstance(name, str) and name in CONFIGS):
        raise InputError(f"unknown model {shown(name)}; there are {', '.join(CONFIGS)}")
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise InputError(
            f"checkpoint={shown(checkpoint)}; give a path, a Hugging Face id as text, or None"
        )
    for argument, value in (("batch_size", batch_size), ("image_size", size)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and int(value) >= 1):
            raise InputError(f"{argument}={shown(value)}; give a whole number of at least 1")
    if size is not None and size > MAX_IMAGE_SIZE:
        raise InputError(f"image_size={size}; give at most {MAX_IMAGE_SIZE}")


@dataclass(frozen=True)
class _Weights:
    """A model in float32 on the CPU, and where it comes from.

    source       for `SamFast.describe`
    fingerprint  as `SamFast.fingerprint`
    file         the header of a quantized or pruned checkpoint, or None; quantized, its weights
    automatic    its own defaults of automatic masks
    """

    name: str
    sam: Sam
    source: str
    fingerprint: str
    file: QuantizedCheckpoint | None
    quantized: QuantizedWeights
    automatic: Mapping[str, float] = field(default_factory=dict)


def _random(name: str | None, image_size: int | None) -> _Weights:
    if name is None:
        raise InputError("checkpoint='random' needs a model's name")
    sam = random_weights(_sized(CONFIGS[name], image_size))
    return _Weights(name, sam, RANDOM, encoder_fingerprint(sam), None, {})


def _read(
    name: str | None,
    checkpoint: str | os.PathLike[str] | None,
    image_size: int | None,
    recipe: Recipe | None,
) -> _Weights:
    """The weights of a checkpoint; CheckpointError where the recipe contradicts its layers."""
    path = resolve(name, checkpoint)
    file = quantized_checkpoint.find(path)
    quantized: QuantizedWeights = {}
    if file is None:
        name, state = load_checkpoint(path, name)
    else:
        if recipe is not None:
            file.check_formats(recipe.layer_formats)
        name, state, quantized = file.read(name)
    config = config_of(state, str(path))
    sam = _empty(_sized(config, image_size))
    source = "; ".join((str(path), *load_into(sam, state, str(path))))
    if file is not None and sam.image_encoder.img_size == config.image_size:
        fingerprint = file.fingerprint  # of the weights before they were quantized
    else:
        fingerprint = encoder_fingerprint(sam)
    return _Weights(name, sam, source, fingerprint, file, quantized, automatic_options(path))


def _choose(
    weights: _Weights, device: torch.device, batch_size: int, budget: float
) -> tuple[Recipe, str, str]:
    """The recipe that "auto" chooses, its name, and the reason."""
    file = weights.file
    choice = choose(
        device,
        # Evidence is of plain weights, not of those in a quantized file.
        fingerprint=None if file else checkpoint_fingerprint(weights.sam, weights.fingerprint),
        model=weights.name,
        batch_size=batch_size,
        budget=budget,
        random=weights.source == RANDOM,
    )
    reason, recipe = f"auto: {choice.reason}", get(choice.name)
    if file is None:
        return recipe, choice.name, reason
    formats, why = file.formats_on(device)
    adapted = replace(recipe, **asdict(formats))
    if refusal(adapted, device) is not None and recipe.products != "torch":
        # As int8 on a CPU without VNNI, which torch's own products take.
        adapted = replace(adapted, products="torch", attention="blocked")
        why += f", which products={recipe.products!r} does not take on this {device.type.upper()}"
    return adapted, name_of(adapted), f"{reason}; {why}"


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
    """A Sam whose random parameters are uninitialised: drawing those of ViT-H takes longer than
    loading it.
    """
    with torch.device("cpu"), SkipRandomInit():
        return build(config)


def random_weights(config: SamConfig, seed: int = 0) -> Sam:
    """A Sam with random weights, equal for equal seeds. The tables of positions are random too,
    which are zero in a new model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build(config)
        with torch.no_grad():
            for name, parameter in sam.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    parameter.normal_(std=0.02)
    return sam
