"""Measures ViT-B's image encoder on a CPU: the original, transformers and samfast's recipes.

    python benchmarks/cpu_vit_b.py [--json FILE] [--rounds N] [--only NAME...]

All variants have the same weights. Each runs in a process of its own, which loads the model,
encodes one image as a warm-up and checks the answer against the original's in fp32. The variants
are then timed in turn, an image each, round after round, so that other load on the machine affects
all alike. Needs what the tests need (segment-anything 1.0, transformers).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

SEED = 0
SIDE = 1024
TOLERANCE = {"fp32": 1e-5, "bf16": 0.05}
BASE = "segment-anything"
OURS = ("reference", "sdpa", "folded", "blocked")
VARIANTS = [f"{name}/{dtype}" for dtype in TOLERANCE for name in (BASE, "transformers", *OURS)]


def weights() -> dict[str, Tensor]:
    """Random weights, the same in every process, with relative positions that are not zero."""
    from samfast.loading import random_weights
    from samfast.model.config import CONFIGS

    return random_weights(CONFIGS["vit_b"], SEED).state_dict()


def encoder(name: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The variant's image encoder, alone in memory."""
    state = weights()
    if name == BASE:
        from tests import oracle

        sam = oracle.load().sam_model_registry["vit_b"]()
        sam.load_state_dict(state)
        original: Callable[[Tensor], Tensor] = sam.image_encoder.to(dtype).eval()
        return original
    if name == "transformers":
        from samfast.bench import rivals

        sdpa: Callable[[Tensor], Tensor] = rivals.transformers(
            "vit_b", state, torch.device("cpu"), dtype
        ).encoder
        return sdpa
    from samfast.model.config import CONFIGS
    from samfast.model.sam import build
    from samfast.recipes import Recipe, apply

    ours = build(CONFIGS["vit_b"])
    ours.load_state_dict(state)
    apply(ours, Recipe(dtype=dtype, attention=name), torch.device("cpu"))
    return ours.image_encoder


def worker(variant: str, truth: Path) -> None:
    """Time one image for each line "go" on stdin, as a line of JSON; an empty line ends."""
    from samfast.bench.peak_memory import peak_resident, resident

    name, _, kind = variant.partition("/")
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    imported = resident()
    run = encoder(name, dtype)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED)).to(dtype)
    with torch.no_grad():
        start = time.perf_counter()
        answer = run(pixels).float()
        first = time.perf_counter() - start
        if variant == f"{BASE}/fp32":
            torch.save(answer, truth)
            error = 0.0
        else:
            exact = torch.load(truth, weights_only=True).double()
            error = float((answer.double() - exact).norm() / exact.norm())
        print(json.dumps({"first_seconds": first, "relative_error": error}), flush=True)
        while sys.stdin.readline().strip():
            start = time.perf_counter()
            run(pixels)
            print(json.dumps(time.perf_counter() - start), flush=True)
    print(
        json.dumps({"peak_resident_bytes": peak_resident(), "imports_resident_bytes": imported}),
        flush=True,
    )


class Variant:
    """A worker process and what it has measured."""

    def __init__(self, name: str, truth: Path) -> None:
        self.name = name
        self.seconds: list[float] = []
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--worker",
            name,
            "--truth",
            str(truth),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.row: dict[str, Any] = self._answer()

    def time_once(self) -> None:
        """One more image."""
        self._say("go")
        self.seconds.append(self._answer())

    def finish(self) -> dict[str, Any]:
        """The row; ends the process."""
        self._say("")
        self.row |= self._answer()
        self._process.wait()
        median = statistics.median(self.seconds)
        return {
            "variant": self.name,
            "seconds": median,
            "fastest_seconds": min(self.seconds),
            "spread": (max(self.seconds) - min(self.seconds)) / median,
            "samples": self.seconds,
            **self.row,
        }

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.name}: its process ended with {self._process.wait()}; see above"
            )
        return json.loads(line)


def measure(names: list[str], truth: Path, rounds: int) -> list[dict[str, Any]]:
    """The rows of variants that are timed in turn."""
    variants: list[Variant] = []
    try:
        for name in names:
            variants.append(Variant(name, truth))
            print(f"{name} is ready: {variants[-1].row}", file=sys.stderr, flush=True)
        for number in range(rounds):
            for variant in variants:
                variant.time_once()
            done = "  ".join(f"{each.name} {each.seconds[-1]:.2f}" for each in variants)
            print(f"round {number + 1}: {done}", file=sys.stderr, flush=True)
        return [variant.finish() for variant in variants]
    finally:
        for variant in variants:
            variant.kill()


def report(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios within each round to the original of the same dtype, and whether the answer was
    right.
    """
    by_name = {row["variant"]: row for row in rows}
    for row in rows:
        kind = row["variant"].partition("/")[2]
        base = by_name.get(f"{BASE}/{kind}")
        row["parity"] = row["relative_error"] <= TOLERANCE[kind]
        row["ratio_to_original"] = None
        if base is not None:
            pairs = zip(row["samples"], base["samples"], strict=True)
            ratios = [seconds / original for seconds, original in pairs]
            row["ratio_to_original"] = statistics.median(ratios)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [
        f"{'variant':24} {'s/image':>8} {'spread':>7} {'ratio':>6} {'peak GiB':>9} "
        f"{'rel. error':>11}"
    ]
    for row in rows:
        ratio = row["ratio_to_original"]
        lines.append(
            f"{row['variant']:24} {row['seconds']:8.2f} {row['spread']:7.0%} "
            f"{'-' if ratio is None else format(ratio, '.2f'):>6} "
            f"{row['peak_resident_bytes'] / 2**30:9.2f} "
            f"{row['relative_error']:11.1e}{'' if row['parity'] else '  WRONG'}"
        )
    return "\n".join(lines)


def main() -> int:
    """0, or 1 if some answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "results" / "cpu_vit_b.json"))
    parser.add_argument("--rounds", type=int, default=5, help="timed images a variant (at least 3)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="NAME")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--truth", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.truth)
        return 0
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3")
    from samfast.bench.environment import stamp

    names = [name for name in VARIANTS if name in arguments.only or name == f"{BASE}/fp32"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in TOLERANCE:  # all processes of both dtypes would need too much memory
            together = [name for name in names if name.endswith(f"/{kind}")]
            rows += report(measure(together, Path(folder) / "truth.pt", arguments.rounds))
    print(table(rows))
    result = {
        "what": "ViT-B image encoder, one image of 1024 x 1024, random weights, relative positions "
        "not zero",
        "timed_region": "normalised pixels to embeddings; one process a variant, timed in turn, "
        "after a warm-up",
        "rounds": arguments.rounds,
        "rows": rows,
        "environment": stamp("cpu"),
    }
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row["parity"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
