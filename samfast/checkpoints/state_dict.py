"""Checkpoints: what people have on disk -> a state dict with Meta's keys -> a model.

Meta's `.pth`, `.safetensors`, transformers' `SamModel` (one file or shards), and what fine-tuning
scripts wrap around them. Everything is checked before any of it is used; no code in a file is
executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.attention.relpos import resize_table
from samfast.checkpoints import file_formats
from samfast.checkpoints.convert import is_transformers, to_meta
from samfast.checkpoints.identify import foreign, identify
from samfast.checkpoints.unwrap import unwrap
from samfast.errors import CheckpointError
from samfast.model.config import CONFIGS
from samfast.model.sam import Sam
from samfast.types import PIXEL_MEAN, PIXEL_STD

_POSITIONS = "image_encoder.pos_embed"
_TABLES = (".attn.rel_pos_h", ".attn.rel_pos_w")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_checkpoint(
    source: str | os.PathLike[str], name: str | None = None
) -> tuple[str, dict[str, Tensor]]:
    """Read a checkpoint and say which model it is of.

    source   a file, or a directory that holds one (see `formats.find`)
    name     the model that is expected, or None to take what is there
    returns  the model's name and its state dict: Meta's keys, float32, on the CPU, possibly mapped
             from the file (`load_into` copies it)

    Raises CheckpointNotFoundError when there is no such file, and CheckpointError when it is
    damaged, unsafe, no SAM, or of another model than `name`. That every tensor is there is found by
    `load_into`.
    """
    path = str(file_formats.find(source))
    state = read_state(path)
    found = identify(state, path)
    if name is not None and name != found:
        if name not in CONFIGS:
            raise CheckpointError(
                f"no model {name!r}: the models are {', '.join(CONFIGS)}; {path} is {found}"
            )
        raise CheckpointError(
            f"{path}: holds {found}, not {name}; ask for {found}, or give a checkpoint of {name}"
        )
    return found, state


def name_of(source: str | os.PathLike[str]) -> str:
    """The model in `CONFIGS` that a checkpoint is of, by its shapes alone: its values are not read.

    Raises as `load_checkpoint` does, but checks less.
    """
    path = file_formats.find(source)
    return identify(_meta_keys(path), str(path))


def read_state(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a SAM of any size: Meta's keys, float32, every value finite.

    Half precision is widened, double precision rounded, as the original's loading does.
    `load_checkpoint` is this, and a check that the SAM is one of `CONFIGS`. Raises as it does.
    """
    path = file_formats.find(source)
    return check_values(_meta_keys(path), str(path))


def check_values(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same state dict in float32; CheckpointError, naming `source`, unless all of it is plain
    finite weights.
    """
    _drop_pixel_statistics(state, source)
    return {key: _float32(key, value, source) for key, value in state.items()}


def _meta_keys(path: Path) -> dict[str, Tensor]:
    state = unwrap(file_formats.read(path), str(path))
    if not is_transformers(state):
        return state
    try:
        return to_meta(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_into(sam: Sam, state: Mapping[str, Tensor], source: str = "state dict") -> tuple[str, ...]:
    """Copy a state dict with Meta's keys into a model, strictly: every tensor, and none besides.

    When the model's grid is another than the checkpoint's, the tables of positions are resized to
    fit: the absolute ones bicubically (`align_corners=False`, no antialiasing; ours, the original
    refuses such a checkpoint), the relative ones linearly, which is what the original computes in
    every forward pass. When the grids agree, every value is copied as it is.

    source   names the state dict in messages
    returns  a line for each kind of table that was resized; empty when nothing was

    Raises CheckpointError when names or shapes do not fit; the model is then unchanged.
    """
    own = sam.state_dict()
    shapes = {key: value.shape for key, value in own.items()}
    given, wanted = (_known_name(tensors, source) for tensors in (state, own))
    if given and wanted and given != wanted:
        raise CheckpointError(
            f"{source}: holds {given}, but this model is {wanted}; build {given}, or give a "
            f"checkpoint of {wanted}"
        )
    _compare(state, shapes, source, "this model")
    fitted = dict(state)
    notes = []
    positions = state.get(_POSITIONS)
    if positions is not None and positions.shape != shapes[_POSITIONS]:
        grid = shapes[_POSITIONS][1]
        fitted[_POSITIONS] = _resize_absolute(positions, grid)
        old = positions.shape[1]
        notes.append(f"absolute positions resized from {old}x{old} to {grid}x{grid} tokens")
    resized = [key for key in state if key.endswith(_TABLES) and state[key].shape != shapes[key]]
    _refuse_other_windows(sam, state, resized, source)
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


def _refuse_other_windows(
    sam: Sam, state: Mapping[str, Tensor], resized: list[str], source: str
) -> None:
    """A table of another length must come of another image size, not of a block that attended
    otherwise.
    """
    if not resized:
        return
    positions = state.get(_POSITIONS)
    for key in resized:
        block = int(key.split(".")[2])
        window = getattr(sam.image_encoder.blocks[block], "window_size", 0)
        length = state[key].shape[0]
        everywhere = None if positions is None else 2 * positions.shape[1] - 1
        if everywhere is not None and (length == everywhere) == bool(window):
            raise CheckpointError(
                f"{source}: {key} has {length} positions, so block {block} attended"
                f" {'globally' if window else f'in windows of {(length + 1) // 2}'}, but does not "
                "in this"
                " model; build the model with the same global_attn_indexes and window_size"
            )


def _drop_pixel_statistics(state: dict[str, Tensor], source: str) -> None:
    """Some forks save the pixels' mean and spread; they are constants here, so they must be the
    same.
    """
    for key, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        tensor = state.pop(key, None)
        if tensor is None:
            continue
        given = tensor.flatten().float()
        if given.numel() != 3 or not torch.allclose(given, torch.tensor(values), atol=1e-2):
            raise CheckpointError(
                f"{source}: {key} is {given[:3].tolist()}, not {list(values)}: this model wants "
                "other pixels"
                " than SAM's; set it on the model and save the rest without it"
            )


def _float32(key: str, value: Tensor, source: str) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.dtype not in _FLOATS:
        raise CheckpointError(
            f"{source}: {key} is {value.dtype} ({value.layout}), not plain floating-point weights; "
            "give the"
            " checkpoint as it was before it was quantized (one that `samfast quantize` made is "
            "for samfast.load"
            " and the command line only)"
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
            "file is"
            " damaged: take an earlier checkpoint"
        )
    return value


def _compare(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str, model: str
) -> None:
    """Raise CheckpointError unless names and shapes fit, the lengths of tables of positions
    aside.
    """
    missing = [key for key in shapes if key not in state]
    unexpected = [key for key in state if key not in shapes]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(
                f"lacks {len(missing)} of the {len(shapes)} tensors of {model} ({_first(missing)})"
            )
        if unexpected:
            parts.append(f"has {len(unexpected)} that {model} does not know ({_first(unexpected)})")
        hint = foreign(unexpected)
        if hint:
            parts.append(hint)
        raise CheckpointError(
            f"{source}: {' and '.join(parts)}; give a checkpoint of a whole, plain SAM"
        )
    for key, shape in shapes.items():
        if not _fits(key, state[key].shape, shape):
            raise CheckpointError(
                f"{source}: {key} is {tuple(state[key].shape)}, but {model} has {tuple(shape)}; "
                "give a"
                " checkpoint of the same architecture"
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


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
