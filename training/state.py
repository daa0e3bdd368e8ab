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
    """How far the training is: steps, photos and seconds so far, and the fraction that is done."""

    step: int = 0
    photos: int = 0
    seconds: float = 0.0
    fraction: float = 0.0


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


def export(
    average: dict[str, Tensor],
    path: Path,
    logit_scale: float = 4.0,
    iou_scale: float = 1.0,
    iou_shift: float = 0.0,
) -> None:
    """Write the averaged weights as a float16 checkpoint with Meta's keys.

    The factors of `scale_logits` and `scale_iou` are kept in the file's metadata, so that
    `read_checkpoint` can undo them.
    """
    factors = {"logit_scale": logit_scale, "iou_scale": iou_scale, "iou_shift": iou_shift}
    scaled = scale_iou(scale_logits(average, logit_scale), iou_scale, iou_shift)
    save_file(
        {k: v.half().cpu().contiguous() for k, v in scaled.items()},
        path,
        metadata={"format": "pt", "calibration": json.dumps(factors)},
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The float32 weights of a checkpoint that `export` wrote, as they were before it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path}: not a safetensors checkpoint ({error})") from error
    factors = json.loads(metadata.get("calibration", "{}"))
    scale = factors.get("iou_scale", 1.0)
    weights = scale_iou(weights, 1 / scale, -factors.get("iou_shift", 0.0) / scale)
    return scale_logits(weights, 1 / factors.get("logit_scale", 1.0))


def scale_iou(weights: dict[str, Tensor], factor: float, shift: float) -> dict[str, Tensor]:
    """The same model with its predicted IoU p turned into factor * p + shift."""
    last = "mask_decoder.iou_prediction_head.layers.2."
    out = dict(weights)
    out[last + "weight"] = weights[last + "weight"] * factor
    out[last + "bias"] = weights[last + "bias"] * factor + shift
    return out


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
