"""The state to resume a training from: weights, their moving average and progress, about 45 MiB.

The optimiser's state is not saved; it warms up again after a resume.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from samfast.errors import CheckpointError


@dataclass
class Progress:
    """How far the training is: stage, step within it, and each stage's steps (0: unknown)."""

    stage: int
    step: int
    steps: list[int]
    photos: int = 0
    seconds: float = 0.0


class Average:
    """Exponential moving average of a model's parameters (Polyak and Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.buffers = {
            name: b for name, b in model.state_dict().items() if name not in self.values
        }
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model, faster in the beginning."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.values.values()), [p.detach() for p in model.parameters()], 1 - decay
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters and the model's buffers."""
        return {**self.values, **self.buffers}


def save(path: Path, model: nn.Module, average: Average, progress: Progress) -> None:
    """Write weights and average (both float16) and progress, replacing the file at the end."""
    tensors = {
        f"weights.{k}": v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()
    }
    tensors |= {f"ema.{k}": v.half().cpu().contiguous() for k, v in average.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(temporary, path)


def restore(path: Path, model: nn.Module, average: Average) -> Progress:
    """Load a saved state into model and average; returns the progress."""
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a training state ({error}); delete it to start anew"
        ) from error
    model.load_state_dict(
        {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    )
    for name, value in average.values.items():
        value.copy_(tensors[f"ema.{name}"])
    average.updates = 10_000
    return progress


def export(average: dict[str, Tensor], path: Path, logit_scale: float = 4.0) -> None:
    """Write the averaged weights as a float16 checkpoint with Meta's keys."""
    scaled = scale_logits(average, logit_scale)
    save_file(
        {k: v.half().cpu().contiguous() for k, v in scaled.items()}, path, metadata={"format": "pt"}
    )


def scale_logits(weights: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same model with its mask logits multiplied; masks and mask prompts work as before.

    A small, briefly trained model has logits a few times smaller than Meta's. Its masks would all
    have low stability scores, which shift the threshold by 1.0. A power of two adds no rounding.
    """
    last = re.compile(r"mask_decoder\.output_hypernetworks_mlps\.\d+\.layers\.2\.(weight|bias)")
    out = dict(weights)
    for name, value in weights.items():
        if last.fullmatch(name):
            out[name] = value * factor
        elif name == "prompt_encoder.mask_downscaling.0.weight":  # its input is earlier logits
            out[name] = value / factor
    return out
