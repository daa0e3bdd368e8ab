"""Compares the loss that `samfast calibrate` estimates with the loss against annotations.

    python benchmarks/loss_without_truth.py DATA [--every N] [--json FILE]

DATA is a folder in COCO's instances format. The encoder of vit_xs is rounded in ways from harmless
to ruinous, simulated in bfloat16; each is scored against the annotations, as `samfast eval` does,
and without them, as `samfast.bench.agreement` does. Both are in points of mean IoU below fp32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import samfast  # noqa: E402
from samfast.bench import accuracy, agreement  # noqa: E402
from samfast.bench.coco_dataset import Dataset, open_dataset  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.engine import SamFast  # noqa: E402
from samfast.errors import DatasetError  # noqa: E402
from samfast.images import load_image  # noqa: E402

Round = Callable[[Tensor], Tensor]

LAYERS = ("qkv", "proj", "lin1", "lin2")


def steps_of(most: int) -> Round:
    """Whole numbers up to `most`, one scale a row of the last dimension."""

    def to(values: Tensor) -> Tensor:
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-9) / most
        return (values / scale).round() * scale

    return to


def float8(values: Tensor) -> Tensor:
    """float8 e4m3, one scale a row."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 448
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def half_of_four(weight: Tensor) -> Tensor:
    """Only the two largest of four neighbours."""
    groups = weight.reshape(-1, 4)
    kept = torch.zeros_like(groups).scatter_(-1, groups.abs().topk(2, dim=-1).indices, 1.0)
    return (groups * kept).reshape(weight.shape)


def same(values: Tensor) -> Tensor:
    """Nothing further."""
    return values


ROUNDINGS: dict[str, tuple[Round, Round, tuple[str, ...]]] = {
    "bfloat16": (same, same, ()),
    "int8": (steps_of(127), steps_of(127), LAYERS),
    "fp8": (float8, float8, LAYERS),
    "6 bits": (steps_of(31), steps_of(31), LAYERS),
    "5 bits": (steps_of(15), steps_of(15), LAYERS),
    "2:4 of qkv, by magnitude": (half_of_four, same, ("qkv",)),
    "2:4 of lin1, by magnitude": (half_of_four, same, ("lin1",)),
    "2:4, by magnitude": (half_of_four, same, LAYERS),
}
"""How weights and activations of which layers are rounded."""


class Rounded(nn.Module):
    """A linear layer that rounds."""

    def __init__(self, layer: nn.Linear, weight: Round, activations: Round) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            weight(layer.weight.float()).to(layer.weight.dtype), requires_grad=False
        )
        self.bias = layer.bias
        self._activations = activations

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.linear(
            self._activations(x.float()).to(x.dtype), self.weight, self.bias
        )
        return y


def rounded(name: str, device: str, attention: str) -> SamFast:
    """vit_xs under one of ROUNDINGS."""
    weight, activations, layers = ROUNDINGS[name]
    recipe = samfast.Recipe(dtype=torch.bfloat16, attention=attention)
    sam = samfast.load("vit_xs", device=device, recipe=recipe, batch_size=1)
    for block in sam.model.image_encoder.blocks:
        for layer in layers:
            parent = block.get_submodule("attn" if layer in ("qkv", "proj") else "mlp")
            linear: Any = parent.get_submodule(layer)
            setattr(parent, layer, Rounded(linear, weight, activations))
    return sam


def losses(reference: dict[str, Any], rounded: dict[str, Any]) -> dict[str, float]:
    """Points of mean IoU against the annotations, for each kind of prompt."""
    return {
        name: 100 * (reference[prompt][score] - rounded[prompt][score])
        for name, prompt, score in (
            ("click", "point", "miou"),
            ("click, best of three", "point", "miou_oracle"),
            ("box", "box", "miou"),
        )
    }


@torch.no_grad()
def main() -> int:
    """0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th photo")
    parser.add_argument(
        "--json", default=str(ROOT / "benchmarks" / "results" / "vit_xs_loss_without_truth.json")
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = "sdpa" if device == "cuda" else "blocked"
    whole = open_dataset(arguments.data)
    data = Dataset(whole.images[:: arguments.every], whole.name)
    fp32 = samfast.load(
        "vit_xs", device=device, recipe=samfast.Recipe(attention=attention), batch_size=1
    )
    truth = accuracy.evaluate(fp32, data)
    images = [load_image(image.path) for image in data.images]
    questions = [agreement.questions_of(fp32, image) for image in images]
    seen = [(image, asked) for image, asked in zip(images, questions, strict=True) if len(asked)]
    if not seen:
        raise DatasetError(f"{arguments.data}: fp32 finds nothing in these photos")
    rows: list[dict[str, Any]] = []
    yardstick: list[agreement.Answers] = []
    for name in ROUNDINGS:
        sam = rounded(name, device, attention)
        answers = [agreement.compare(sam, asked, image) for image, asked in seen]
        yardstick = yardstick or answers
        figures = agreement.summary([each for _, each in seen], answers, yardstick)
        true = losses(truth, accuracy.evaluate(sam, data))
        rows.append({"rounding": name, "true_loss_points": true, **figures})
        print(
            f"{name:28} true {max(true.values()):6.2f}, without truth "
            f"{figures['loss_points']:6.2f}: "
            + ", ".join(
                f"{kind} {figures[kind]['loss']:.2f} ± {figures[kind]['uncertainty']:.2f}, "
                f"disagreement {figures[kind]['disagreement']:.2f}"
                for kind in agreement.KINDS
            ),
            flush=True,
        )
    result = {
        "what": "vit_xs, its encoder rounded in several ways: points of mean IoU below fp32",
        "data": f"{truth['images']} photos with {truth['masks']} annotated masks",
        "fp32": {kind: truth[kind] for kind in ("point", "box")},
        "rows": rows,
        "environment": stamp(device),
    }
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
