r"""Measures the image encoder on a GPU: samfast's recipes and their rivals, model by model.

    python benchmarks/encoder_gpu.py --models vit_b:1,8,32 vit_h:8 --recipes bf16 fused fp8 \
        --rivals segment-anything segment-anything-fast --rivals-path DIR --out FILE

Writes one JSON file of rows, as `samfast bench --json` does, again after each row, so that an
interrupted run keeps its rows and `--resume FILE` continues it. Models, rivals and recipes are
measured in the order given.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfast.bench import ladder  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.bench.results import finished  # noqa: E402
from samfast.cli.bench_command import describe, told  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.errors import SamfastError  # noqa: E402

MODELS = ("vit_b:8,32,1", "vit_h:8", "vit_l:8", "vit_xs:8")
RECIPES = ("bf16", "bf16_folded", "bf16_triton", "triton", "fused", "fp8")
RIVALS = ("segment-anything", "segment-anything-fast", "transformers-compiled")


def parse_model(text: str) -> tuple[str, tuple[int, ...]]:
    """`vit_b:1,8` -> ("vit_b", (1, 8)); for argparse."""
    name, _, sizes = text.partition(":")
    try:
        batch_sizes = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        batch_sizes = ()
    if not name or not batch_sizes or min(batch_sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODEL:N[,N...], a model and its batch sizes"
        )
    return name, batch_sizes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    command_line = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    models = [parse_model(text) for text in MODELS]
    command_line.add_argument(
        "--models", nargs="+", type=parse_model, default=models, metavar="MODEL:N,N"
    )
    command_line.add_argument("--recipes", nargs="*", default=list(RECIPES), metavar="NAME")
    command_line.add_argument(
        "--rivals", nargs="*", default=list(RIVALS), metavar="NAME", help="without rival:"
    )
    command_line.add_argument(
        "--rivals-path", metavar="DIR", help="checkouts of rivals that are not installed"
    )
    command_line.add_argument("--checkpoint", default="random", help="default: random weights")
    command_line.add_argument("--device", default="cuda")
    command_line.add_argument("--out", required=True, metavar="FILE")
    command_line.add_argument("--resume", metavar="FILE", help="keep what an earlier run finished")
    command_line.add_argument("--repeats", type=int, default=5)
    command_line.add_argument(
        "--profile", action="store_true", help="add the time by kernel to each row"
    )
    command_line.add_argument(
        "--cold", action="store_true", help="empty caches of compiled code for each row"
    )
    return command_line


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows; the file is written after each of them."""
    start = time.monotonic()
    rivals = [f"rival:{name.removeprefix('rival:')}" for name in arguments.rivals]
    rows: list[dict[str, Any]] = []
    if arguments.resume is not None:
        rows = finished(arguments.resume, stamp(arguments.device))
        print(f"{len(rows)} rows are kept of {arguments.resume}", file=sys.stderr, flush=True)

    def save(rows: list[dict[str, Any]], latest: dict[str, Any]) -> None:
        write_json(rows, arguments.out)
        took = f"{time.monotonic() - start:5.0f} s"
        print(f"{took}  {told(latest)}", file=sys.stderr, flush=True)

    for model, sizes in arguments.models:
        rows = ladder.run(
            [*rivals, *arguments.recipes],
            model=model,
            checkpoint=arguments.checkpoint,
            device=arguments.device,
            batch_size=sizes,
            repeats=arguments.repeats,
            rivals_path=arguments.rivals_path,
            kernels=arguments.profile,
            cold=arguments.cold,
            resume=rows,
            on_rows=save,
        )
        write_json(rows, arguments.out)
        if any(row["status"] == ladder.INTERRUPTED for row in rows):
            break
    return rows


def main(argv: list[str] | None = None) -> int:
    """0; 1 if a row failed, was wrong or was interrupted; 2 for a wrong command line."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO)  # shows the stderr of processes that fail
    try:
        rows = measure(arguments)
    except SamfastError as error:
        print(f"encoder_gpu: {error}", file=sys.stderr)
        return 2
    for model in dict.fromkeys(row["model"] for row in rows):
        print(f"\n{model}")
        for line in describe([row for row in rows if row["model"] == model]):
            print(line)
    fine = ("ok", "refused")
    return 0 if all(row["status"].partition(":")[0] in fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
