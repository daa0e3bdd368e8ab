"""Checkpoints that were quantized or pruned and saved: a `.safetensors` whose header says how.

Keys are Meta's. A quantized layer's weight is int8 or float8_e4m3fn, with `weight_scale` (out,)
float32 beside it; everything else is as in the checkpoint that it was made from, in 16 bits where
these hold its values exactly, and pruned weights are stored with their zeros.

The header's metadata, every value text: `format`, `version`, `model`, `config` (the model's sizes,
JSON), `recipe` (the fields of LayerFormats, JSON), `fingerprint` (of the encoder's weights before
they were quantized), `source`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from samfast.atomic_files import atomic_write
from samfast.checkpoints import file_formats
from samfast.checkpoints.identify import identify
from samfast.checkpoints.state_dict import check_values
from samfast.errors import CheckpointError, RecipeError
from samfast.linear import check_24
from samfast.linear.dequantized import dequantize
from samfast.linear.encoder_layers import LayerFormats, encoder_layers
from samfast.linear.quantization import quantize_weight
from samfast.linear.quantize_layers import FORMATS
from samfast.model.config import SamConfig
from samfast.model.sam import Sam

FORMAT, VERSION = "samfast-quantized", "1"

MAKE_AGAIN = "make the file again: samfast quantize CHECKPOINT IMAGES... --recipe NAME --out FILE"

QuantizedWeights = Mapping[str, tuple[Tensor, Tensor]]
"""Weight and scales of each quantized layer, by the layer's name."""


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """The header of such a file.

    formats      of its layers; the rest of a recipe is chosen when the file is loaded
    fingerprint  of the encoder's weights before they were quantized, as `SamFast.fingerprint`
    """

    path: Path
    formats: LayerFormats
    fingerprint: str

    def read(self, name: str | None) -> tuple[str, dict[str, Tensor], QuantizedWeights]:
        """The model's name, its state dict in float32, and its quantized weights.

        name  the expected model, or None
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
        return identify(state, str(self.path), name), state, quantized

    def restore(self, sam: Sam, quantized: QuantizedWeights) -> None:
        """Put the file's quantized layers into a model that has the state dict of `read`."""
        layers = {layer.name: layer for layer in encoder_layers(sam, self.formats.quantized)}
        if set(layers) != set(quantized):
            odd = min(set(layers) ^ set(quantized))
            raise CheckpointError(
                f"{self.path}: its header and its tensors disagree on whether {odd} is quantized; "
                f"{MAKE_AGAIN}"
            )
        for name, layer in layers.items():
            plain = layer.module
            assert isinstance(plain, nn.Linear), "a model that was just loaded"
            kind = FORMATS[str(self.formats.quantize)]
            layer.put(kind(*quantized[name], plain.bias, plain.weight.dtype))

    def check_formats(self, wanted: LayerFormats) -> None:
        """CheckpointError if other layers are wanted quantized or sparse than the file has.

        Pruned weights may be wanted dense: they are multiplied with their zeros.
        """
        has = self.formats
        if (
            (wanted.quantize, wanted.quantized) != (has.quantize, has.quantized)
        ) or not wanted.sparse <= has.sparse:
            raise CheckpointError(
                f"{self.path}: its layers are {has}, but the recipe asks for {wanted}; take "
                "recipe='auto', which takes what the file has, or give the checkpoint that it was "
                "made from"
            )

    def formats_on(self, device: torch.device) -> tuple[LayerFormats, str]:
        """The formats of its layers on that device, and the reason in words for a user.

        A CPU has no 2:4 products: pruned weights are multiplied with their zeros.
        """
        has, reason = self.formats, f"the file's layers are {self.formats}"
        if has.sparsify and device.type != "cuda":
            reason += "; their zeros are multiplied too, as a CPU has no 2:4 products"
            return LayerFormats(has.quantize, has.quantized_layers), reason
        return has, reason

    def _check_quantized(self, key: str, value: Tensor, scale: Tensor) -> None:
        kind = FORMATS.get(str(self.formats.quantize))
        fits = kind is not None and value.dtype == kind.format and value.ndim == 2
        if not fits or scale.shape != value.shape[:1] or scale.dtype != torch.float32:
            raise CheckpointError(
                f"{self.path}: {key} is {value.dtype} {tuple(value.shape)} with scales of "
                f"{scale.dtype} {tuple(scale.shape)}, not {self.formats.quantize} weights with a "
                f"scale a row; {MAKE_AGAIN}"
            )


def find(source: str | os.PathLike[str]) -> QuantizedCheckpoint | None:
    """The header of the file, or of the one checkpoint in that directory; None for a plain one.

    Raises CheckpointError for a header that is damaged or that a later samfast wrote.
    """
    path = file_formats.find(source)
    header = file_formats.metadata(path)
    if header.get("format") != FORMAT:
        return None
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: a quantized checkpoint of version {header.get('version')}, and this samfast "
            f"reads version {VERSION}; install a later one, or {MAKE_AGAIN}"
        )
    try:
        written = json.loads(header["recipe"])
        values = {field.name: written[field.name] for field in fields(LayerFormats)}
        for name in ("quantized_layers", "sparse_layers"):
            values[name] = tuple(values[name])
        return QuantizedCheckpoint(path, LayerFormats(**values), header["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:  # RecipeError is a ValueError
        raise CheckpointError(
            f"{path}: its header is damaged ({type(error).__name__}: {error}); {MAKE_AGAIN}"
        ) from error


def save(
    sam: Sam,
    formats: LayerFormats,
    path: str | os.PathLike[str],
    *,
    config: SamConfig,
    fingerprint: str,
    source: str,
) -> None:
    """Write a model's weights in those formats.

    sam          plain and in float32; already pruned where layers are to be sparse
                 (`samfast.linear.prune_layerwise`)
    config       its sizes
    fingerprint  of its encoder's weights, as `SamFast.fingerprint`
    source       the checkpoint that it was made from, for people

    Raises RecipeError when no layer is quantized or sparse, CheckpointError when a layer that is to
    be 2:4 sparse is not, OutputError when the file cannot be written.
    """
    if not formats.quantized | formats.sparse:
        raise RecipeError("the recipe neither quantizes nor sparsifies: there is nothing to save")
    from safetensors.torch import save as to_bytes

    tensors = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    for layer in encoder_layers(sam, formats.sparse):
        check_24(tensors[f"{layer.name}.weight"], layer.name)
    scales = {}
    for layer in encoder_layers(sam, formats.quantized):
        key = f"{layer.name}.weight"
        kind = FORMATS[str(formats.quantize)]
        tensors[key], scales[f"{key}_scale"] = quantize_weight(tensors[key], kind.format)
    tensors = {key: _narrowest(value) for key, value in tensors.items()} | scales
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": config.name,
        "config": json.dumps(asdict(config)),
        "recipe": json.dumps(asdict(formats)),
        "fingerprint": fingerprint,
        "source": source,
    }
    atomic_write(path, to_bytes(tensors, header))


def _narrowest(value: Tensor) -> Tensor:
    """The tensor in 16 bits if these hold each of its values exactly, so that a checkpoint in half
    precision does not grow. Loading widens them again: no recipe's answer depends on it.
    """
    if value.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            narrow = value.to(dtype)
            if torch.equal(narrow.float(), value):
                return narrow
    return value
