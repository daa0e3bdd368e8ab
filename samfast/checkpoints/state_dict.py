"""Reading a checkpoint into a state dict with Meta's keys, and loading that into a model.

Checkpoints are Meta's `.pth`, `.safetensors` or transformers' `SamModel` (one file or shards), in
any container that fine-tuning scripts save. All tensors are checked before any is used; code in a
file is never executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention.relpos import resize_table
from samfast.checkpoints import file_formats
from samfast.checkpoints.file_formats import abbreviated
from samfast.checkpoints.identify import foreign, identify
from samfast.checkpoints.transformers_keys import is_transformers, to_meta
from samfast.checkpoints.unwrap import unwrap
from samfast.errors import CheckpointError
from samfast.model.sam import Sam
from samfast.types import PIXEL_MEAN, PIXEL_STD

_POSITIONS = "image_encoder.pos_embed"
_TABLES = (".attn.rel_pos_h", ".attn.rel_pos_w")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_checkpoint(
    source: str | os.PathLike[str], name: str | None = None
) -> tuple[str, dict[str, Tensor]]:
    """Read the checkpoint of one of the models in `CONFIGS`.

    source   a file, or a directory that holds one (see `file_formats.find`)
    name     the expected model, or None for any
    returns  the model's name and its state dict: Meta's keys, float32, on the CPU, possibly mapped
             from the file (`load_into` copies it)

    Raises CheckpointNotFoundError if there is no such file, and CheckpointError if it is damaged,
    unsafe, no SAM, or another model than `name`. `load_into` checks that no tensor is missing.
    """
    path = str(file_formats.find(source))
    state = read_state(path)
    return identify(state, path, name), state


def read_state(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a SAM of any size: Meta's keys, float32, every value finite.

    Half precision is widened and double precision rounded, as when the original loads a checkpoint.
    Raises as `load_checkpoint` does.
    """
    path = file_formats.find(source)
    state = unwrap(file_formats.read(path), str(path))
    if is_transformers(state):
        state = to_meta(state, str(path))
    return check_values(state, str(path))


def check_values(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict in float32; CheckpointError unless all of it is plain, finite weights."""
    _drop_pixel_statistics(state, source)
    return {key: _float32(key, value, source) for key, value in state.items()}


def load_into(sam: Sam, state: Mapping[str, Tensor], source: str = "state dict") -> tuple[str, ...]:
    """Copy a state dict with Meta's keys into a model. Missing and unexpected tensors are errors.

    If the model's grid differs from the checkpoint's, tables of positions are resized. The absolute
    ones are resized bicubically (`align_corners=False`, no antialiasing); the original refuses such
    a checkpoint. The relative ones are resized linearly, as the original does in every forward
    pass. If the grids agree, every value is copied unchanged.

    source   names the state dict in messages
    returns  a line for each kind of table that was resized

    Raises CheckpointError if names or shapes do not fit; the model is then unchanged.
    """
    target = sam.state_dict()
    given, wanted = (_known_name(tensors, source) for tensors in (state, target))
    if given and wanted and given != wanted:
        raise CheckpointError(
            f"{source}: holds {given}, but this model is {wanted}; build {given}, or give a "
            f"checkpoint of {wanted}"
        )
    shapes = {key: value.shape for key, value in target.items()}
    _compare(state, shapes, source)
    fitted = dict(state)
    notes = []
    positions = state.get(_POSITIONS)
    if positions is not None and positions.shape != shapes[_POSITIONS]:
        old, new = positions.shape[1], shapes[_POSITIONS][1]
        fitted[_POSITIONS] = _resize_absolute(positions, new)
        notes.append(f"absolute positions resized from {old}x{old} to {new}x{new} tokens")
    resized = [key for key in state if key.endswith(_TABLES) and state[key].shape != shapes[key]]
    _check_windows(sam, state, resized, source)
    for key in resized:
        fitted[key] = resize_table(state[key], (shapes[key][0] + 1) // 2)
    if resized:
        notes.append(f"relative positions of {len(resized)} tables resized")
    sam.load_state_dict(fitted, strict=True)
    return tuple(notes)


def _known_name(state: Mapping[str, Tensor], source: str) -> str | None:
    try:
        return identify(state, source)
    except CheckpointError:
        return None


def _resize_absolute(positions: Tensor, grid: int) -> Tensor:
    """(1, g, g, C) -> (1, grid, grid, C)."""
    channels_first = positions.permute(0, 3, 1, 2)
    resized = F.interpolate(
        channels_first, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False
    )
    return resized.permute(0, 2, 3, 1)


def _check_windows(sam: Sam, state: Mapping[str, Tensor], resized: list[str], source: str) -> None:
    """Raise CheckpointError if a block of the checkpoint was global where the model's is windowed.

    A table may differ in length because of the image size, but not because of that.
    """
    positions = state.get(_POSITIONS)
    if positions is None:
        return
    global_length = 2 * positions.shape[1] - 1
    for key in resized:
        block = int(key.split(".")[2])
        windowed = bool(getattr(sam.image_encoder.blocks[block], "window_size", 0))
        length = state[key].shape[0]
        if (length == global_length) == windowed:
            raise CheckpointError(
                f"{source}: {key} has {length} positions, so block {block} attended "
                f"{'globally' if windowed else f'in windows of {(length + 1) // 2}'}, but does not "
                "in this model; build the model with the same global_attn_indexes and window_size"
            )


def _drop_pixel_statistics(state: dict[str, Tensor], source: str) -> None:
    """Remove the pixels' mean and deviation, which some forks save; they must be SAM's."""
    for key, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        tensor = state.pop(key, None)
        if tensor is None:
            continue
        given = tensor.flatten().float()
        if given.numel() != 3 or not torch.allclose(given, torch.tensor(values), atol=1e-2):
            raise CheckpointError(
                f"{source}: {key} is {given[:3].tolist()}, not {list(values)}: this model was "
                "trained on other pixel values than SAM; set it on the model and save the rest "
                "without it"
            )


def _float32(key: str, value: Tensor, source: str) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.dtype not in _FLOATS:
        raise CheckpointError(
            f"{source}: {key} is {value.dtype} ({value.layout}), not plain floating-point weights; "
            "give the checkpoint as it was before it was quantized (one that `samfast quantize` "
            "made is for samfast.load and the command line only)"
        )
    if value.is_meta:
        raise CheckpointError(
            f"{source}: {key} has a shape but no values; save the model once it is loaded"
        )
    value = value.detach().to(torch.float32)
    if not value.numel():
        return value
    low, high = torch.aminmax(value)  # one pass, no copy; both are NaN if any value is
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise CheckpointError(
            f"{source}: {key} has values that are NaN or infinite; the training diverged or the "
            "file is damaged: take an earlier checkpoint"
        )
    return value


def _compare(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str) -> None:
    """Raise CheckpointError unless names and shapes fit, except the lengths of position tables."""
    missing = [key for key in shapes if key not in state]
    unexpected = [key for key in state if key not in shapes]
    problems = []
    if missing:
        problems.append(
            f"lacks {len(missing)} of the {len(shapes)} tensors of this model "
            f"({abbreviated(missing)})"
        )
    if unexpected:
        problems.append(
            f"has {len(unexpected)} that this model does not know ({abbreviated(unexpected)})"
        )
    if problems:
        hint = foreign(unexpected)
        raise CheckpointError(
            f"{source}: {' and '.join([*problems, *([hint] if hint else [])])}; give a checkpoint "
            "of a whole, plain SAM"
        )
    for key, shape in shapes.items():
        if not _fits(key, state[key].shape, shape):
            raise CheckpointError(
                f"{source}: {key} is {tuple(state[key].shape)}, but this model has {tuple(shape)}; "
                "give a checkpoint of the same architecture"
            )


def _fits(key: str, given: torch.Size, wanted: torch.Size) -> bool:
    if given == wanted:
        return True
    if key == _POSITIONS:
        square = len(given) == 4 and given[1] == given[2] >= 1
        return square and (given[0], given[3]) == (wanted[0], wanted[3])
    if key.endswith(_TABLES):
        return len(given) == 2 and given[0] % 2 == 1 and given[1] == wanted[1]
    return False
