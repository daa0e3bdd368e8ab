"""Measures what int8, fp8 and 2:4 sparsity cost in accuracy, for vit_xs on a CPU.

    SAMFAST_DATA=DIR python benchmarks/quantized_vit_xs.py [--rows NAME...] [--limit N] [--photos N]
    [--json FILE]

DIR has val/ and train/, each with images/ and annotations.json (see training/). Every row is
bfloat16 but for what its name says. int8 is samfast's layer. fp8 and 2:4 have no products on a CPU
and are emulated: fp8 by the reference of `samfast.linear`, which rounds as the GPU's products do
except for their sums; 2:4 by dense products with the zeros, which gives the same numbers. Pruning
is calibrated on photos of train/. Rows already in FILE are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import samfast
from samfast.atomic_files import atomic_write
from samfast.bench import accuracy
from samfast.bench.coco_dataset import open_dataset
from samfast.bench.environment import stamp
from samfast.engine import SamFast
from samfast.images import load_image, to_batch
from samfast.linear import Fp8Linear, check_24
from samfast.linear.dequantized import reference
from samfast.linear.encoder_layers import LAYERS, encoder_layers
from samfast.linear.pattern import best_two
from samfast.linear.prune import DAMPING, Moments, magnitude, sparsegpt
from samfast.linear.prune_layerwise import prune_layerwise
from samfast.provenance import Provenance
from samfast.recipes import Recipe, apply

OUT = Path(__file__).parent / "results" / "vit_xs_val_quantized.json"

MIN_AREA = 1024
"""Masks of fewer pixels are left out, as in the model card."""

CPU = torch.device("cpu")
BASE = Recipe(dtype=torch.bfloat16, attention="blocked")
MLP = ("lin1", "lin2")
FED = ("qkv", "lin1", "lin2")
"""The layers whose input a norm or GELU quantizes as it writes it; proj would need another pass."""


@dataclass(frozen=True)
class Row:
    """A setting: what is done to which layers, and for pruning, by which method."""

    quantize: str | None = None
    layers: tuple[str, ...] = LAYERS
    prune: str | None = None
    sparse: tuple[str, ...] = LAYERS


ROWS = {
    "bf16": Row(),
    "int8": Row("int8"),
    "int8 qkv+lin1+lin2": Row("int8", FED),
    "fp8": Row("fp8"),
    "fp8 qkv+lin1+lin2": Row("fp8", FED),
    "2:4 samfast": Row(prune="samfast"),
    "2:4 sparsegpt": Row(prune="sparsegpt"),
    "2:4 wanda": Row(prune="wanda"),
    "2:4 magnitude": Row(prune="magnitude"),
    "2:4 samfast lin1+lin2": Row(prune="samfast", sparse=MLP),
    "2:4 sparsegpt lin1+lin2": Row(prune="sparsegpt", sparse=MLP),
    "2:4 wanda lin1+lin2": Row(prune="wanda", sparse=MLP),
    "2:4 magnitude lin1+lin2": Row(prune="magnitude", sparse=MLP),
    "int8 + 2:4 samfast": Row("int8", prune="samfast"),
}


class Emulated(nn.Module):
    """An fp8 layer's numbers on a CPU."""

    pads_with_bias = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.layer = Fp8Linear.from_linear(linear)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), rounded to x's dtype as the GPU's product is."""
        layer = self.layer
        return reference(x, layer.weight, layer.weight_scale, layer.bias).to(x.dtype)


def by_magnitude(layer: nn.Linear, moments: Moments, keep_bias: bool) -> None:
    """The larger two of four stay, as they are."""
    layer.weight.copy_(magnitude(layer.weight))


def by_wanda(layer: nn.Linear, moments: Moments, keep_bias: bool) -> None:
    """The two of larger |w| ||x|| stay, as they are.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    norms = moments.xx.diagonal().clamp(min=0).sqrt().to(layer.weight.dtype)
    layer.weight.mul_(best_two(layer.weight.abs() * norms))


def by_sparsegpt(layer: nn.Linear, moments: Moments, keep_bias: bool) -> None:
    """SparseGPT as published: one pass over the columns, the bias as it is."""
    damping = DAMPING * moments.xx.diagonal().mean()
    h = moments.xx + damping * torch.eye(len(moments.xx), dtype=torch.float64)
    layer.weight.copy_(sparsegpt(layer.weight.double(), h))


METHODS: dict[str, Callable[[nn.Linear, Moments, bool], None] | None] = {
    "samfast": None,
    "sparsegpt": by_sparsegpt,
    "wanda": by_wanda,
    "magnitude": by_magnitude,
}


def photos(folder: Path, count: int) -> list[Tensor]:
    """So many photos of a split, as the encoder takes them: from each source in turn, by a hash of
    their names.
    """
    listed = json.loads((folder / "annotations.json").read_text())["images"]
    by_source: dict[str, list[str]] = {}
    for image in listed:
        by_source.setdefault(image.get("source", ""), []).append(image["file_name"])
    queues = [
        sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        for _, names in sorted(by_source.items())
    ]
    chosen: list[str] = []
    for turn in range(max(map(len, queues))):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    side = 1024
    return [
        to_batch([load_image(folder / "images" / name)], side).pixels for name in chosen[:count]
    ]


def build(row: Row, images: Callable[[], list[Tensor]]) -> tuple[SamFast, dict[str, float]]:
    """The model of a row, and how far each pruned layer's answers are off on the photos of
    calibration.
    """
    sam = samfast.load("vit_xs", device="cpu", recipe=replace(BASE, dtype=torch.float32)).model
    errors: dict[str, float] = {}
    if row.prune is not None:
        calibration = images() if row.prune != "magnitude" else images()[:1]
        errors = prune_layerwise(sam, calibration, row.sparse, method=METHODS[row.prune])
        for place in encoder_layers(sam, row.sparse):
            assert isinstance(place.module, nn.Linear)
            check_24(place.module.weight, place.name)
    recipe = BASE
    if row.quantize == "int8":
        recipe = replace(BASE, quantize="int8", quantized_layers=row.layers)
    runtime = apply(sam, recipe, CPU)
    if row.quantize == "fp8":
        for place in encoder_layers(sam, row.layers):
            assert isinstance(place.module, nn.Linear)
            place.put(Emulated(place.module))
    return SamFast(sam, runtime, Provenance("vit_xs")), errors


def main() -> int:
    """Measure, and write after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--limit", type=int, help="the first N validation photos only")
    parser.add_argument("--photos", type=int, default=32, help="to calibrate on (default: 32)")
    parser.add_argument("--json", default=str(OUT))
    arguments = parser.parse_args()
    if "SAMFAST_DATA" not in os.environ:
        parser.error("SAMFAST_DATA must name the folder with train/ and val/")
    data = Path(os.environ["SAMFAST_DATA"])
    val = open_dataset(str(data / "val"))
    made: list[Tensor] = []

    def images() -> list[Tensor]:
        made.extend([] if made else photos(data / "train", arguments.photos))
        return made

    out = Path(arguments.json)
    rows: dict[str, Any] = (
        {row["name"]: row for row in json.loads(out.read_text())} if out.exists() else {}
    )
    for name in arguments.rows:
        if name in rows:
            continue
        start = time.perf_counter()
        row = ROWS[name]
        sam, errors = build(row, images)
        seconds = time.perf_counter() - start
        result = accuracy.evaluate(sam, val, limit=arguments.limit, min_area=MIN_AREA)
        rows[name] = {
            "name": name,
            "quantize": row.quantize,
            "quantized_layers": list(row.layers) if row.quantize else [],
            "prune": row.prune,
            "sparse_layers": list(row.sparse) if row.prune else [],
            "emulated": row.quantize == "fp8" or row.prune is not None,
            "min_area": MIN_AREA,
            "calibration": {"split": "train", "photos": arguments.photos}
            if row.prune not in (None, "magnitude")
            else None,
            "layer_error": {
                "mean": sum(errors.values()) / len(errors),
                "worst": max(errors.values()),
            }
            if errors
            else None,
            "preparation_seconds": seconds,
            **{key: value for key, value in result.items() if key not in ("recipe", "environment")},
            "environment": stamp("cpu"),
        }
        ordered = [rows[each] for each in ROWS if each in rows]
        atomic_write(out, (json.dumps(ordered, indent=2) + "\n").encode())
        print(
            f"{name:<26} box {result['box']['miou']:.4f}  point {result['point']['miou']:.4f}  "
            f"oracle {result['point']['miou_oracle']:.4f}  ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
