"""Mean IoU of the recipes `2:4` and `int8_2:4` with weights pruned for them, on annotated photos.

    SAMFAST_DATA=DIR python benchmarks/pruned_accuracy.py --json FILE [--model vit_xs]
        [--checkpoint FILE] [--device cuda] [--photos N] [--limit N] [--recipes NAME...]

DIR has val/ and train/, each with images/ and annotations.json. By the commands that a user has:
`samfast quantize` prunes with photos of train/, `samfast eval` scores on val/, with clicks and
boxes, and both rules for clicks; the plain recipes `fp32_sdpa` and `nested`, of which the others
are the sparse forms, are scored in the same run. Without sparse products, on a CPU, a sparse recipe
is a row that says so. The file is written after each row, and rows in it that are done are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.child_environment import child_environment  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.recipes import RECIPES  # noqa: E402

RECIPES_SCORED = ("fp32_sdpa", "nested", "2:4", "int8_2:4")

RULES = ("edt", "seed")

MIN_AREA = 1024
"""Masks of fewer pixels are left out, as in the model card."""


def samfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of samfast."""
    return subprocess.run(
        [sys.executable, "-m", "samfast", *arguments],
        env=child_environment(),
        capture_output=True,
        text=True,
    )


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def row_of(recipe: str, arguments: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    """A recipe's scores, or the reason for having none."""
    place = ["--device", arguments.device]
    model = ["--model", arguments.model]
    source = [] if arguments.checkpoint is None else ["--checkpoint", arguments.checkpoint]
    row: dict[str, Any] = {"recipe": recipe, "model": arguments.model, "status": "ok"}
    row["environment"] = stamp(arguments.device)
    if RECIPES[recipe].sparsify is not None:
        pruned = folder / f"{recipe.replace(':', '_')}.safetensors"
        checkpoint = arguments.checkpoint or arguments.model
        photos = ["--limit", str(arguments.photos), "--recipe", recipe, "--out", str(pruned)]
        done = samfast("quantize", checkpoint, str(data / "train/images"), *model, *place, *photos)
        if done.returncode != 0:
            return row | {"status": f"failed: {last_line(done.stderr)}"}
        row |= {"photos": arguments.photos, "pruned": last_line(done.stdout.partition("\n")[0])}
        source = ["--checkpoint", str(pruned)]
    for rule in RULES:
        result = folder / "eval.json"
        options = ["--recipe", recipe, "--min-area", str(MIN_AREA), "--point-rule", rule]
        if arguments.limit is not None:
            options += ["--limit", str(arguments.limit)]
        done = samfast(
            "eval", str(data / "val"), "--json", str(result), *model, *source, *place, *options
        )
        if done.returncode != 0:
            return row | {"status": f"failed: {last_line(done.stderr)}"}
        row[rule] = json.loads(result.read_text())
    return row


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--json", required=True, metavar="FILE")
    made.add_argument("--model", default="vit_xs")
    made.add_argument("--checkpoint", metavar="FILE")
    made.add_argument("--device", default="cuda")
    made.add_argument("--photos", type=int, default=48, help="to prune with")
    made.add_argument("--limit", type=int, help="photos to score on (default: all)")
    made.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), default=RECIPES_SCORED)
    return made


def main(argv: list[str] | None = None) -> int:
    """0, or 1 if a recipe was not scored."""
    arguments = parser().parse_args(argv)
    data = Path(os.environ["SAMFAST_DATA"])
    file = Path(arguments.json)
    earlier = json.loads(file.read_text()) if file.exists() else []
    rows = [row for row in earlier if row["status"] == "ok"]
    with tempfile.TemporaryDirectory() as folder:
        for recipe in arguments.recipes:
            if any(row["recipe"] == recipe for row in rows):
                continue
            rows.append(row_of(recipe, arguments, data, Path(folder)))
            write_json(rows, str(file))
            shown = {
                rule: {kind: rows[-1][rule][kind] for kind in ("point", "box")}
                for rule in RULES
                if rule in rows[-1]
            }
            print(recipe, rows[-1]["status"], json.dumps(shown), file=sys.stderr, flush=True)
    return 0 if all(row["status"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
