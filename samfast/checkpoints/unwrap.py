"""The state dict inside the containers that training scripts save.

`{"model": ..., "optimizer": ...}` (MedSAM, most trainers), `{"state_dict": ...}` (Lightning, with
`model.` before each key), `module.` (DataParallel), `_orig_mod.` (torch.compile), and nestings of
these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from samfast.checkpoints.file_formats import abbreviated
from samfast.checkpoints.identify import describe, foreign
from samfast.errors import CheckpointError
from samfast.model.config import CONFIGS

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "sam",
    "net",
    "network",
    "weights",
    "checkpoint",
)
"""Preferred keys of a state dict in a container, in this order; an average (`ema`) is ignored."""

_ANCHORS = (
    "mask_decoder.iou_token.weight",  # in Meta's and in transformers' layout
    "image_encoder.patch_embed.proj.weight",
    "vision_encoder.patch_embed.projection.weight",
)
"""Keys that every SAM has."""

_MODULE_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

_SAVE = "torch.save(model.state_dict(), 'weights.pth')"


def unwrap(loaded: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a SAM by their plain names (Meta's or transformers').

    Raises CheckpointError, naming `source`, if it holds no SAM, several, or a SAM and more.
    """
    wrapped = _search(loaded, source, depth=3)
    if wrapped is None:
        what = foreign(_keys(loaded, depth=3)) or describe([str(key) for key in loaded])
        raise CheckpointError(
            f"{source}: no SAM in it ({what}); give a checkpoint of {', '.join(CONFIGS)}"
        )
    state = {_plain(str(key)): value for key, value in wrapped.items()}
    if len(state) != len(wrapped):
        raise CheckpointError(
            f"{source}: two of its tensors have the same name once wrappers are removed"
        )
    prefix = _prefix(state, source)
    not_tensors = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise CheckpointError(
            f"{source}: {abbreviated(not_tensors)}: not a tensor; save only the weights: {_SAVE}"
        )
    outside = [key for key in state if not key.startswith(prefix)]
    if outside:
        raise CheckpointError(
            f"{source}: beside the SAM in '{prefix}' it holds {len(outside)} other tensors "
            f"({abbreviated(outside)}), which samfast would have to leave out; save the SAM alone: "
            f"torch.save(model.{prefix}state_dict(), 'weights.pth')"
        )
    return {key[len(prefix) :]: value for key, value in state.items()}


def _search(loaded: Mapping[Any, Any], source: str, depth: int) -> Mapping[Any, Any] | None:
    """The mapping that holds a SAM's tensors, at most `depth` levels down."""
    if any(_is_anchor(key) and isinstance(value, Tensor) for key, value in loaded.items()):
        return loaded
    if not depth:
        return None
    inside = {}
    for key, value in loaded.items():
        if isinstance(value, Mapping) and (state := _search(value, source, depth - 1)) is not None:
            inside[key] = state
    for name in WRAPPERS:
        if name in inside:
            return inside[name]
    if len(inside) > 1:
        raise CheckpointError(
            f"{source}: holds several SAMs ({', '.join(map(repr, inside))}); save the one you want:"
            " torch.save(checkpoint[name], 'weights.pth')"
        )
    return next(iter(inside.values()), None)


def _keys(loaded: Mapping[Any, Any], depth: int) -> Iterator[str]:
    """The keys of a mapping and of those inside it, at most `depth` levels down."""
    for key, value in loaded.items():
        yield str(key)
        if depth and isinstance(value, Mapping):
            yield from _keys(value, depth - 1)


def _is_anchor(key: object) -> bool:
    return isinstance(key, str) and any(_ends_with(_plain(key), anchor) for anchor in _ANCHORS)


def _ends_with(key: str, anchor: str) -> bool:
    return f".{key}".endswith(f".{anchor}")


def _plain(key: str) -> str:
    """The key without the names that wrapping modules add."""
    return ".".join(part for part in key.split(".") if part not in _MODULE_WRAPPERS)


def _prefix(state: Mapping[str, object], source: str) -> str:
    """What precedes the names of the SAM's tensors."""
    for anchor in _ANCHORS:
        prefixes = sorted(key[: -len(anchor)] for key in state if _ends_with(key, anchor))
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{source}: holds {len(prefixes)} SAMs, under {', '.join(map(repr, prefixes))}; "
                f"save the one you want: {_SAVE}"
            )
        if prefixes:
            return prefixes[0]
    return ""
