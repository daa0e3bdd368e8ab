"""Checkpoints that were quantized or pruned once and saved: a `.safetensors` with what was done in its header.

Keys are Meta's. A quantized layer's weight is there as int8 or float8_e4m3fn, with `weight_scale` (out,) float32
beside it; all else is as in the checkpoint that it was made from, and pruned weights are there with their zeros.
The header's metadata: `format`, `version`, `model`, `config` (the model's sizes), `recipe` (what was done to which
layers), `fingerprint` (of the weights before they were quantized) and `source`, the last three but one as JSON.
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

from samfast.errors import CheckpointError, RecipeError
from samfast.linear import QuantizedLinear
from samfast.linear.reference import dequantize
from samfast.linear.rows import quantize_weight
from samfast.model import formats
from samfast.model.checkpoint import check_values, check_whole
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import Sam
from samfast.recipes.layers import places
from samfast.recipes.quantize import FORMATS
from samfast.recipes.recipe import LAYERS, Recipe

FORMAT, VERSION = "samfast-quantized", "1"

FIELDS = ("quantize", "quantized_layers", "sparsify", "sparse_layers")
"""What of a recipe is settled once weights are saved; the rest is chosen whenever they are loaded."""

SCALE = "_scale"


@dataclass(frozen=True)
class Stored:
    """What such a file says of itself.

    path         the file
    model        "vit_b", ...; config, its sizes
    recipe       those of a recipe's fields that are in FIELDS
    fingerprint  of the encoder's weights before they were quantized, as `SamFast.fingerprint`
    """

    path: Path
    model: str
    config: SamConfig
    recipe: dict[str, Any]
    fingerprint: str

    def read(self, name: str | None) -> tuple[str, dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """The model's name, its state dict in float32, and weight and scales of each quantized layer, by its name.

        name  the model that is expected, or None
        Raises CheckpointError when the file is damaged or of another model.
        """
        if name is not None and name != self.model:
            raise CheckpointError(
                f"{self.path}: holds {self.model}, not {name}; ask for {self.model}, or give a checkpoint of {name}"
            )
        state: dict[str, Tensor] = {}
        quantized: dict[str, tuple[Tensor, Tensor]] = {}
        tensors = dict(formats.read(self.path))
        for key, value in tensors.items():
            layer = key.removesuffix(".weight")
            scale = tensors.get(key + SCALE)
            if key.endswith(SCALE) and key.removesuffix(SCALE) in tensors:
                continue
            if scale is None:
                state[key] = value
                continue
            self._check_quantized(key, value, scale)
            quantized[layer] = value, scale
            state[key] = dequantize(value, scale)
        self._check_layers(quantized)
        return self.model, check_values(state, str(self.path)), quantized

    def restore(self, sam: Sam, quantized: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Put the file's quantized layers into a model that was loaded with the state dict of `read`."""
        for place in places(sam):
            if place.name in quantized:
                plain = place.module
                assert isinstance(plain, nn.Linear)
                kind = FORMATS[self.recipe["quantize"]]
                place.put(kind(*quantized[place.name], plain.bias, plain.weight.dtype))

    def agree(self, recipe: Recipe) -> None:
        """CheckpointError if a recipe asks for other weights than the file has.

        A recipe without sparsify is none such: pruned weights may be multiplied with their zeros.
        """
        wanted, own = (_words(fields) for fields in (_fields(recipe), self.recipe))
        if wanted["quantize"] != own["quantize"]:
            raise CheckpointError(
                f"{self.path}: its weights are {own['quantize']}, but the recipe asks for {wanted['quantize']}; take "
                "recipe='auto', which takes what the file has, or give the checkpoint that it was made from"
            )
        layers = set(recipe.sparse_layers)
        if recipe.sparsify is not None and (
            self.recipe["sparsify"] != recipe.sparsify or not layers <= set(self.recipe["sparse_layers"])
        ):
            raise CheckpointError(
                f"{self.path}: its weights are {own['sparsify']}, but the recipe asks for {wanted['sparsify']}; take "
                "recipe='auto', or prune the checkpoint that it was made from: samfast quantize CHECKPOINT IMAGES..."
            )

    def complete(self, recipe: Recipe, device: torch.device) -> tuple[Recipe, str]:
        """A recipe with the file's fields, and why, in words for a user. On a CPU zeros are multiplied too."""
        fields = dict(self.recipe)
        notes = [_words(fields)["quantize"]] if fields["quantize"] else []
        if fields["sparsify"]:
            notes.append(_words(fields)["sparsify"])
            if device.type != "cuda":
                fields |= {"sparsify": None, "sparse_layers": LAYERS}
                notes.append("with their zeros multiplied, as there are no 2:4 products on a CPU")
        return replace(recipe, **fields), f"the file's weights are {', '.join(notes)}"

    def _check_quantized(self, key: str, value: Tensor, scale: Tensor) -> None:
        kind = FORMATS.get(str(self.recipe["quantize"]))
        fits = kind is not None and value.dtype == kind.format and value.ndim == 2
        if not fits or scale.shape != value.shape[:1] or scale.dtype != torch.float32:
            raise CheckpointError(
                f"{self.path}: {key} is {value.dtype} {tuple(value.shape)} with scales {scale.dtype} "
                f"{tuple(scale.shape)}, which is no {self.recipe['quantize']} weight; make the file again"
            )
        # Of float8, NaN is the one value that is not finite.
        if not bool(torch.isfinite(scale).all()) or bool(value.float().isnan().any()):
            raise CheckpointError(f"{self.path}: {key} has values that are NaN or infinite; make the file again")

    def _check_layers(self, quantized: Mapping[str, object]) -> None:
        layers = self.recipe["quantized_layers"] if self.recipe["quantize"] else ()
        blocks = range(self.config.depth)
        parents = {"qkv": "attn", "proj": "attn", "lin1": "mlp", "lin2": "mlp"}
        wanted = {f"image_encoder.blocks.{i}.{parents[name]}.{name}" for i in blocks for name in layers}
        if wanted != set(quantized):
            other = sorted(wanted ^ set(quantized))
            raise CheckpointError(
                f"{self.path}: its header and its tensors disagree on which layers are quantized ({other[0]}, ...); "
                "make the file again"
            )


def find(source: str | os.PathLike[str]) -> Stored | None:
    """What the file, or the one checkpoint in that directory, says of itself; None if it is a plain checkpoint.

    Reads the header only. Raises CheckpointError for a header that says nonsense, or was written by a later samfast.
    """
    path = formats.find(source)
    metadata = formats.metadata(path)
    if metadata.get("format") != FORMAT:
        return None
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: a quantized checkpoint of version {metadata.get('version')!r}; this samfast reads {VERSION}: "
            "install a later one, or make the file again"
        )
    try:
        config = json.loads(metadata["config"])
        config["global_attn_indexes"] = tuple(config["global_attn_indexes"])
        fields = json.loads(metadata["recipe"])
        fields = {
            key: tuple(fields[key]) if isinstance(fields[key], list) else fields[key] for key in FIELDS
        }
        Recipe(**fields)
        stored = Stored(path, metadata["model"], SamConfig(**config), fields, metadata["fingerprint"])
    except (ValueError, KeyError, TypeError, RecipeError) as error:
        raise CheckpointError(
            f"{path}: the header of a quantized checkpoint is damaged ({type(error).__name__}: {error}); make the "
            "file again: samfast quantize CHECKPOINT IMAGES... --recipe NAME --out FILE"
        ) from error
    return stored


def save(
    sam: Sam, recipe: Recipe, path: str | os.PathLike[str], *, config: SamConfig, fingerprint: str, source: str
) -> None:
    """Write a model that a recipe is to be applied to, its layers quantized as the recipe says.

    sam          in float32, pruned if the recipe has sparsify (`sparsify.by_calibration`)
    config       its sizes; fingerprint, of its encoder's weights, as `SamFast.fingerprint` has it
    source       what it was made from, for people

    Raises CheckpointError when a layer that is to be 2:4 sparse is not, OutputError when the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    from samfast.outputs.atomic import atomic_write

    tensors = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": config.name,
        "config": json.dumps(asdict(config)),
        "recipe": json.dumps(_fields(recipe)),
        "fingerprint": fingerprint,
        "source": source,
    }
    ...
    atomic_write(path, to_bytes(tensors, metadata))
