"""`recipe="auto"`: which recipe for which device, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samfast.recipes.support import native_bf16, refusal
from samfast.recipes.table import get


@dataclass(frozen=True)
class Choice:
    """A recipe's name and the reason for it, in words for a user."""

    name: str
    reason: str


def choose(device: torch.device) -> Choice:
    """The fastest recipe that stays within the accuracy budget on that device, as measured."""
    if device.type == "cuda":
        for name, reason in (
            (
                "bf16_folded",
                "bfloat16 on tensor cores, and relative positions folded into flash attention: the fastest of these "
                "recipes for ViT-B at batch 8 on an H200, the one GPU they were tried on",
            ),
            ("fp16_sdpa", "this GPU has no bfloat16"),
            ("fp32_sdpa", "this GPU has neither bfloat16 nor float16"),
        ):
            if refusal(get(name), device) is None:
                return Choice(name, reason)
    if native_bf16():
        return Choice(
            "bf16_blocked",
            "this CPU multiplies bfloat16 itself: the fastest, and on vit_xs's validation photos its mean IoU is "
            "within 0.1 points of float32's; for float32 ask for fp32_blocked",
        )
    return Choice("fp32_blocked", "the fastest on a CPU without bfloat16 instructions, and exact")
