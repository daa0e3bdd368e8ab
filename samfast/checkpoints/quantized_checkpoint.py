"""Checkpoints that were quantized or pruned once and saved: a `.safetensors` with what was done in
its header.

Keys are Meta's. A quantized layer's weight is there as int8 or float8_e4m3fn, with `weight_scale`
(out,) float32 beside it; all else is as in the checkpoint that it was made from, and pruned weights
are there with their zeros. The header's metadata, every value text: `format`, `version`, `model`,
`config` (the model's sizes, JSON), `recipe` (what was done to which layers, JSON), `fingerprint`
(of the encoder's weights before they were quantized), `source`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samfast.atomic_files import atomic_write
from samfast.checkpoints import file_formats
from samfast.checkpoints.identify import identify
from samfast.checkpoints.state_dict import check_values
from samfast.errors import CheckpointError, RecipeError
from samfast.linear import check_24
from samfast.linear.dequantized import dequantize
from samfast.linear.encoder_layers import places
from samfast.linear.quantization import quantize_weight
from samfast.model.config import SamConfig
from samfast.model.sam import Sam
from samfast.recipes.quantize import FORMATS
from samfast.recipes.recipe import LAYERS, Recipe
from samfast.recipes.table import RECIPES

FORMAT, VERSION = "samfast-quantized", "1"

FIELDS = ("quantize", "quantized_layers", "sparsify", "sparse_layers")
"""What of a recipe is settled once weights are saved; the rest is chosen whenever they are
loaded."""

AGAIN = "make the file again: samfast quantize CHECKPOINT IMAGES... --recipe NAME --out FILE"

Quantized = Mapping[str, tuple[Tensor, Tensor]]
"""Weight and scales of each quantized layer, by the layer's name."""


@dataclass(frozen=True)
class Stored:
    """What such a file says of itself.

    path         the file
    recipe       those of a recipe's fields that are in FIELDS
    fingerprint  of the encoder's weights before they were quantized, as `SamFast.fingerprint` has
                 it
    """

    path: Path
    recipe: dict[str, Any]
    fingerprint: str

    def read(self, name: str | None) -> tuple[str, dict[str, Tensor], Quantized]:
        """The model's name, its whole state dict in float32, and its quantized layers as they are
        in the file.

        name  the model that is expected, or None
        Raises CheckpointError when the file is damaged or of another model.
        """
        state: dict[str, Tensor] = {}
        quantized: dict[str, tuple[Tensor, Tensor]] = {}
        tensors = file_formats.read(self.path)
        for key, value in tensors.items():
            scale = tensors.get(f"{key}_scale")
            if scale is not None:
                self._check_quantized(key, value, scale)
                quantized[key.removesuffix(".weight")] = value, scale
                state[key] = dequantize(value, scale)
            elif key.removesuffix("_scale") not in tensors or not key.endswith("_scale"):
                state[key] = value
        state = check_values(state, str(self.path))
        found = identify(state, str(self.path))
        if name is not None and name != found:
            raise CheckpointError(
                f"{self.path}: holds {found}, not {name}; ask for {found}, or give a checkpoint of "
                f"{name}"
            )
        return found, state, quantized

    def restore(self, sam: Sam, quantized: Quantized) -> None:
        """Put the file's quantized layers into a model that was loaded with the state dict of
        `read`.
        """
        wanted = {place.name: place for place in places(sam, self.recipe["quantized_layers"])}
        if not self.recipe["quantize"]:
            wanted = {}
        if set(wanted) != set(quantized):
            odd = min(set(wanted) ^ set(quantized))
            raise CheckpointError(
                f"{self.path}: its header and its tensors disagree on whether {odd} is quantized; "
                f"{AGAIN}"
            )
        for name, place in wanted.items():
            plain = place.module
            assert isinstance(plain, nn.Linear), "a model that was just loaded"
            kind = FORMATS[self.recipe["quantize"]]
            place.put(kind(*quantized[name], plain.bias, plain.weight.dtype))

    def agree(self, recipe: Recipe) -> None:
        """CheckpointError if a recipe asks for other weights than the file has.

        One without sparsify does not: pruned weights may be multiplied with their zeros.
        """
        layers = set(recipe.sparse_layers if recipe.sparsify else ())
        has = set(self.recipe["sparse_layers"] if self.recipe["sparsify"] else ())
        if _quantized(self.recipe) != _quantized(fields(recipe)) or not layers <= has:
            raise CheckpointError(
                f"{self.path}: its layers are {describe(self.recipe)}, but the recipe asks for "
                f"{describe(fields(recipe))}; take recipe='auto', which takes what the file has, "
                "or give the "
                "checkpoint that it was made from"
            )

    def complete(self, recipe: Recipe, device: torch.device) -> tuple[str, Recipe, str]:
        """A recipe with the file's fields: its name, or "custom", itself, and the reason in words
        for a user.

        On a CPU, which has no 2:4 products, pruned weights are multiplied with their zeros.
        """
        own = dict(self.recipe)
        reason = f"the file's layers are {describe(own)}"
        if own["sparsify"] and device.type != "cuda":
            own |= {"sparsify": None, "sparse_layers": LAYERS}
            reason += "; their zeros are multiplied too, as a CPU has no 2:4 products"
        whole = replace(recipe, **own)
        return (
            next((name for name, known in RECIPES.items() if known == whole), "custom"),
            whole,
            reason,
        )

    def _check_quantized(self, key: str, value: Tensor, scale: Tensor) -> None:
        kind = FORMATS.get(str(self.recipe["quantize"]))
        fits = kind is not None and value.dtype == kind.format and value.ndim == 2
        if not fits or scale.shape != value.shape[:1] or scale.dtype != torch.float32:
            raise CheckpointError(
                f"{self.path}: {key} is {value.dtype} {tuple(value.shape)} with scales of "
                f"{scale.dtype} "
                f"{tuple(scale.shape)}, not {self.recipe['quantize']} weights with a scale a row; "
                f"{AGAIN}"
            )


def find(source: str | os.PathLike[str]) -> Stored | None:
    """What the file, or the one checkpoint in that directory, says of itself; None if it is a plain
    checkpoint.

    Reads the header only. Raises CheckpointError for one that is damaged or that a later samfast
    wrote.
    """
    path = file_formats.find(source)
    header = file_formats.metadata(path)
    if header.get("format") != FORMAT:
        return None
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: a quantized checkpoint of version {header.get('version')}, and this samfast "
            "reads version "
            f"{VERSION}; install a later one, or {AGAIN}"
        )
    try:
        written = json.loads(header["recipe"])
        own: dict[str, Any] = {
            key: tuple(written[key]) if key.endswith("layers") else written[key] for key in FIELDS
        }
        Recipe(**own)
        return Stored(path, own, header["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:  # RecipeError is a ValueError
        raise CheckpointError(
            f"{path}: its header is damaged ({type(error).__name__}: {error}); {AGAIN}"
        ) from error


def save(
    sam: Sam,
    recipe: Recipe,
    path: str | os.PathLike[str],
    *,
    config: SamConfig,
    fingerprint: str,
    source: str,
) -> None:
    """Write a model's weights as a recipe wants them: its layers quantized, if they are to be, and
    the rest as it is.

    sam          plain and in float32; already pruned if the recipe has sparsify
                 (`sparsify.prune_by_calibration`)
    config       its sizes
    fingerprint  of its encoder's weights, as `SamFast.fingerprint` has it
    source       what it was made from, for people

    Raises RecipeError when the recipe neither quantizes nor sparsifies, CheckpointError when a
    layer that is to be 2:4 sparse is not, OutputError when the file cannot be written.
    """
    if not recipe.lossy:
        raise RecipeError(
            f"recipe ({recipe}) neither quantizes nor sparsifies: there is nothing to save"
        )
    from safetensors.torch import save as to_bytes

    tensors = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    if recipe.sparsify is not None:
        for place in places(sam, recipe.sparse_layers):
            check_24(tensors[f"{place.name}.weight"], place.name)
    if recipe.quantize is not None:
        for place in places(sam, recipe.quantized_layers):
            key = f"{place.name}.weight"
            tensors[key], tensors[f"{key}_scale"] = quantize_weight(
                tensors[key], FORMATS[recipe.quantize].format
            )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": config.name,
        "config": json.dumps(asdict(config)),
        "recipe": json.dumps(fields(recipe)),
        "fingerprint": fingerprint,
        "source": source,
    }
    atomic_write(path, to_bytes(tensors, header))


def describe(settled: Mapping[str, Any]) -> str:
    """What those fields of a recipe do to which layers, in words."""
    done = []
    for what, layers in (("quantize", "quantized_layers"), ("sparsify", "sparse_layers")):
        if settled[what]:
            chosen = [layer for layer in LAYERS if layer in settled[layers]]
            done.append(f"{settled[what]} ({', '.join(chosen)})")
    return " and ".join(done) or "neither quantized nor pruned"


def fields(recipe: Recipe) -> dict[str, Any]:
    """Those of a recipe's fields that are in FIELDS."""
    return {name: getattr(recipe, name) for name in FIELDS}


def _quantized(settled: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    return settled["quantize"], frozenset(
        settled["quantized_layers"] if settled["quantize"] else ()
    )
