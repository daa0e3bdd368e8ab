"""Times `SamPredictor` over a model of the registry, as projects use it, against `samfast.load`.

    python benchmarks/drop_in.py [--model vit_b] [--device cuda] [--rounds N] [--json FILE]

Each round sets one photo and clicks once, on each predictor in turn, so that other load on the
machine affects all alike. The predictors: `modules`, a registry's model whose modules are called
because one has a hook; `registry`, as it comes; `load`, the same recipe by `samfast.load`; `auto`.
All have the same random weights. The answers of the first three are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import samfast  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.loading import random_weights  # noqa: E402
from samfast.model.config import CONFIGS  # noqa: E402
from samfast.provenance import Provenance  # noqa: E402
from samfast.recipes import apply, get  # noqa: E402
from samfast.segment_anything.recipe_runner import fastest_fp32  # noqa: E402

CLICK: dict[str, Any] = {"point_coords": np.array([[500, 300]]), "point_labels": np.array([1])}
SIZE = (768, 1024)


def predictors(name: str, device: torch.device) -> dict[str, samfast.SamPredictor]:
    """The four of the module's docstring."""
    weights = random_weights(CONFIGS[name], 0).state_dict()

    def plain() -> Any:
        sam = samfast.sam_model_registry[name]()
        sam.load_state_dict(weights)
        return sam.to(device).eval()

    def loaded(recipe: str) -> samfast.SamFast:
        sam = random_weights(CONFIGS[name], 0)
        runtime = apply(sam, get(recipe), device, name=name)
        return samfast.SamFast(sam, runtime, Provenance(name, recipe))

    hooked = plain()
    hooked.mask_decoder.register_forward_hook(lambda *call: None)
    auto = samfast.load(name, checkpoint="random", device=device).recipe_name
    models = {
        "modules": hooked,
        "registry": plain(),
        "load": loaded(fastest_fp32(device)),
        "auto": loaded(auto),
    }
    return {kind: samfast.SamPredictor(model) for kind, model in models.items()}


def measure(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Medians in seconds, the ratio to `load`, and how far the masks agree."""
    photo = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    made = predictors(name, device)
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in made}
    answers = {}
    for number in range(rounds + 2):
        for kind, predictor in made.items():
            start = time.perf_counter()
            predictor.set_image(photo)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            middle = time.perf_counter()
            answers[kind] = predictor.predict(**CLICK, return_logits=True)[0]
            if number >= 2:  # the first calls build and tune
                times[kind].append((middle - start, time.perf_counter() - middle))
    medians = {
        kind: [statistics.median(column) for column in zip(*values, strict=True)]
        for kind, values in times.items()
    }
    expected = answers["modules"]
    error = {
        kind: float(np.linalg.norm(answers[kind] - expected) / np.linalg.norm(expected))
        for kind in ("registry", "load")
    }
    return {
        "model": name,
        "seconds": {
            kind: {"set_image": image, "predict": click} for kind, (image, click) in medians.items()
        },
        "ratio_to_load": statistics.median(
            sum(ours) / sum(theirs)
            for ours, theirs in zip(times["registry"], times["load"], strict=True)
        ),
        "relative_error_to_modules": error,
        "parity": max(error.values()) <= 1e-4,
        "describe": made["registry"].describe(),
        "rounds": rounds,
    }


def main() -> int:
    """0; 1 if the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=tuple(CONFIGS), default=["vit_b"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rows = [
        {**measure(name, device, arguments.rounds), "environment": stamp(device)}
        for name in arguments.model
    ]
    text = json.dumps(rows, indent=2) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    return 0 if all(row["parity"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
