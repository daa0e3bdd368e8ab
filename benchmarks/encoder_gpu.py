r"""The image encoder on a GPU: samfast's recipes and their rivals, model by model, within a budget
of time.

    python benchmarks/encoder_gpu.py --models vit_b:1,8,32 vit_h:8 --recipes bf16 fused fp8 \
        --rivals segment-anything segment-anything-fast --rivals-path DIR --out FILE --seconds 500

One JSON file of rows, as `samfast bench --json` writes them, written again after each row: when the
time is up or the machine goes away, what was measured is there, and `--resume FILE` goes on from
it. Models, rivals and recipes are measured in the order given; a model's batch sizes in one process
a recipe, of which only the first one's first call says how long a new process takes to start.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfast.bench import ladder  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.bench.results import finished  # noqa: E402
from samfast.cli.bench import describe  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.errors import SamfastError  # noqa: E402

MODELS = ("vit_b:8,32,1", "vit_h:8", "vit_l:8", "vit_xs:8")
RECIPES = ("bf16", "bf16_folded", "bf16_triton", "triton", "fused", "fp8")
RIVALS = ("segment-anything", "segment-anything-fast", "transformers-compiled")


def parse_model(text: str) -> tuple[str, tuple[int, ...]]:
    """`vit_b:1,8` -> ("vit_b", (1, 8)); for argparse."""
    name, _, sizes = text.partition(":")
    try:
        found = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        found = ()
    if not name or not found or min(found) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODEL:N[,N...], a model and its batch sizes"
        )
    return name, found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    models = [parse_model(text) for text in MODELS]
    found.add_argument("--models", nargs="+", type=parse_model, default=models, metavar="MODEL:N,N")
    found.add_argument("--recipes", nargs="*", default=list(RECIPES), metavar="NAME")
    found.add_argument(
        "--rivals", nargs="*", default=list(RIVALS), metavar="NAME", help="without rival:"
    )
    found.add_argument(
        "--rivals-path", metavar="DIR", help="checkouts of rivals that are not installed"
    )
    found.add_argument("--checkpoint", default="random", help="default: random weights")
    found.add_argument("--device", default="cuda")
    found.add_argument("--out", required=True, metavar="FILE")
    found.add_argument("--resume", metavar="FILE", help="keep what an earlier run finished")
    found.add_argument("--seconds", type=float, default=None, help="stop when they are up")
    found.add_argument("--timeout", type=float, default=None, help="seconds a row may take")
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--profile", action="store_true", help="add the time by kernel to each row")
    found.add_argument(
        "--cold", action="store_true", help="empty caches of compiled code for each recipe"
    )
    found.add_argument(
        "--restart", action="store_true", help="the first call in a second process too"
    )
    return found


def measure(arguments: argparse.Namespace, start: float) -> list[dict[str, Any]]:
    """All rows; the file is written after each of them."""
    names = [
        *(f"rival:{name.removeprefix('rival:')}" for name in arguments.rivals),
        *arguments.recipes,
    ]
    rows: list[dict[str, Any]] = []
    if arguments.resume is not None:
        rows = finished(arguments.resume, stamp(arguments.device))
        print(f"{len(rows)} rows are kept of {arguments.resume}", file=sys.stderr, flush=True)
    said = len(rows)

    def save(found: list[dict[str, Any]]) -> None:
        nonlocal said
        write_json(found, arguments.out)
        new = len(found) > said
        said = len(found)
        if new:
            took = f"{time.monotonic() - start:5.0f} s"
            print(f"{took}  {len(found)} rows are in {arguments.out}", file=sys.stderr, flush=True)

    for model, sizes in arguments.models:
        seconds = None
        if arguments.seconds is not None:
            seconds = max(0.001, arguments.seconds - (time.monotonic() - start))
        rows = ladder.run(
            names,
            model=model,
            checkpoint=arguments.checkpoint,
            device=arguments.device,
            batch_size=sizes,
            repeats=arguments.repeats,
            rivals_path=arguments.rivals_path,
            kernels=arguments.profile,
            cold=arguments.cold,
            restart=arguments.restart,
            resume=rows,
            timeout=arguments.timeout,
            seconds=seconds,
            on_rows=save,
            on_failure=lambda name, log: print(f"--- {name}\n{log}", file=sys.stderr, flush=True),
        )
        write_json(rows, arguments.out)
        if any(row["status"] == ladder.INTERRUPTED for row in rows):
            break
    return rows


def main(argv: list[str] | None = None) -> int:
    """0; 1 if a row failed, was wrong or was interrupted; 2 for a wrong command line."""
    start = time.monotonic()
    arguments = parser().parse_args(argv)
    try:
        rows = measure(arguments, start)
    except SamfastError as error:
        print(f"encoder_gpu: {error}", file=sys.stderr)
        return 2
    for model in dict.fromkeys(row["model"] for row in rows):
        print(f"\n{model}")
        for line in describe([row for row in rows if row["model"] == model]):
            print(line)
    fine = ("ok", "refused", "skipped")
    return 0 if all(row["status"].partition(":")[0] in fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
