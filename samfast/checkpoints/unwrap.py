"""The state dict inside what training scripts save around it.

`{"model": ..., "optimizer": ...}` (MedSAM, most trainers), `{"state_dict": ...}` (Lightning, with
`model.` before each key), `module.` (DataParallel), `_orig_mod.` (torch.compile), wrappers within
wrappers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samfast.checkpoints.identify import describe
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
"""Where a state dict is looked for, in this order; an average (`ema`) beside one is left alone."""

_ANCHORS = (
    "mask_decoder.iou_token.weight",  # in Meta's and in transformers' layout
    "image_encoder.patch_embed.proj.weight",
    "vision_encoder.patch_embed.projection.weight",
)
_LAYERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrap(loaded: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a SAM by their plain names (Meta's or transformers'), from anything wrapped
    around them.

    Raises CheckpointError, naming `source`, when there is no SAM in it, or several and no telling
    which.
    """
    found = _search(loaded, source, depth=3)
    if found is None:
        raise CheckpointError(
            f"{source}: no SAM in it ({describe([str(key) for key in loaded])});"
            f" give a checkpoint of {', '.join(CONFIGS)}"
        )
    state = {_plain(str(key)): value for key, value in found.items()}
    if len(state) != len(found):
        raise CheckpointError(
            f"{source}: two of its tensors have the same name once wrappers are taken off"
        )
    prefix = _prefix(state, source)
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{source}: {', '.join(odd[:3])}: not a tensor; save only the weights:"
            " torch.save(model.state_dict(), 'weights.pth')"
        )
    outside = [key for key in state if not key.startswith(prefix)]
    if outside:
        raise CheckpointError(
            f"{source}: beside the SAM in '{prefix}' it holds {len(outside)} other tensors"
            f" ({', '.join(outside[:3])}), which samfast would have to leave out; save the SAM "
            "alone:"
            f" torch.save(model.{prefix}state_dict(), 'weights.pth')"
        )
    return {key[len(prefix) :]: value for key, value in state.items()}


def _search(loaded: Mapping[Any, Any], source: str, depth: int) -> Mapping[Any, Any] | None:
    if any(_anchored(key) and isinstance(value, Tensor) for key, value in loaded.items()):
        return loaded
    if not depth:
        return None
    inside = {}
    for key, value in loaded.items():
        found = _search(value, source, depth - 1) if isinstance(value, Mapping) else None
        if found is not None:
            inside[key] = found
    for name in WRAPPERS:
        if name in inside:
            return inside[name]
    if len(inside) > 1:
        raise CheckpointError(
            f"{source}: holds several SAMs ({', '.join(map(repr, inside))}); save the one you want:"
            " torch.save(checkpoint[name], 'weights.pth')"
        )
    return next(iter(inside.values()), None)


def _anchored(key: object) -> bool:
    return isinstance(key, str) and f".{_plain(key)}".endswith(
        tuple(f".{anchor}" for anchor in _ANCHORS)
    )


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _LAYERS)


def _prefix(state: Mapping[str, object], source: str) -> str:
    for anchor in _ANCHORS:
        prefixes = sorted(key[: -len(anchor)] for key in state if f".{key}".endswith(f".{anchor}"))
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{source}: holds {len(prefixes)} SAMs, under {', '.join(map(repr, prefixes))}; "
                "save the one"
                " you want: torch.save(model.state_dict(), 'weights.pth')"
            )
        if prefixes:
            return prefixes[0]
    return ""
