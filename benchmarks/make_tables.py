"""The tables that `recipe="auto"` reads, and the figures in documents, made from the committed
results.

    python benchmarks/make_tables.py [--check]

Reads every JSON file under benchmarks/results: rows of `samfast bench`, `cpu_vit_b.json`, and
results of `samfast eval` and quantized_vit_xs.py on the packaged weights. Writes
samfast/recipes/data/speed.json and accuracy.json, and fills the figures into DOCUMENTS (see
documents.py); no figure in them comes from anywhere else. `--check` writes nothing and exits 1 if
they are not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import documents  # noqa: E402
from samfast.recipes import RECIPES, Recipe, evidence  # noqa: E402
from samfast.recipes.evidence import Evidence, Speed, rounding  # noqa: E402
from samfast.recipes.recipe import PROMPTS  # noqa: E402

DOCUMENTS = (ROOT / "docs" / "performance.md",)
RESULTS = ROOT / "benchmarks" / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STAMP = (
    *("device", "gpu", "capability", "driver", "cuda", "torch", "triton", "samfast"),
    *("commit", "dirty", "cpu", "cpu_kind", "threads", "date"),
)
"""The keys of a row's environment that go into the tables."""

PACKAGED = "vit_xs"
"""The model whose committed scores are of the packaged weights."""

Content = tuple[str, Any]


def main() -> int:
    """0; with --check 1 if a table is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    wrong = []
    made = {evidence.DATA / name: text for name, text in tables(RESULTS).items()}
    made |= {path: documents.fill(path.read_text(encoding="utf-8"), RESULTS) for path in DOCUMENTS}
    for path, text in made.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            wrong.append(path)
    for path in wrong:
        print(f"{path} is not what {RESULTS} says: run {Path(__file__).name}", file=sys.stderr)
    return 1 if wrong else 0


def tables(results: Path) -> dict[str, str]:
    """Each table's file name and text."""
    contents = [
        (str(path.relative_to(results)), json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(results.rglob("*.json"))
    ]
    return {
        "speed.json": evidence.packaged_text(speeds(contents)),
        "accuracy.json": evidence.packaged_text(accuracies(contents)),
    }


def speeds(contents: list[Content]) -> list[Speed]:
    """A row for each recipe, device, model and batch size; of several measurements the newest."""
    newest: dict[tuple[Any, ...], Speed] = {}
    for _, content in contents:
        for row in (*_bench_rows(content), *_cpu_rows(content)):
            key = (row.gpu or "", row.cpu_kind or "", row.model, row.batch_size, row.recipe)
            if key not in newest or str(newest[key].environment["date"]) <= str(
                row.environment["date"]
            ):
                newest[key] = row
    return [newest[key] for key in sorted(newest)]


def _bench_rows(content: Any) -> Iterator[Speed]:
    """Those of `samfast bench --json` that were measured; not the rivals."""
    for row in _rows(content):
        recipe = RECIPES.get(str(row.get("recipe")))
        if recipe is None or row.get("status") != "ok" or not row.get("encoder_images_per_second"):
            continue
        if row.get("definition", str(recipe)) not in _descriptions(recipe):
            continue  # measured when the name meant another recipe
        environment = row["environment"]
        yield Speed(
            recipe=row["recipe"],
            definition=recipe.encoder_settings,
            model=row["model"],
            batch_size=row["batch_size"],
            gpu=environment["gpu"],
            capability=environment.get("capability"),
            images_per_second=row["encoder_images_per_second"],
            peak_bytes=row.get("encoder_peak_memory_bytes") or row["peak_memory_bytes"],
            compile_seconds=row["compile_seconds"],
            environment=_stamp(environment),
        )


def _descriptions(recipe: Recipe) -> set[str]:
    """The descriptions in results of all recipes with this encoder, however prompts are decoded."""
    return {str(replace(recipe, prompts=prompts)) for prompts in PROMPTS}


def _cpu_rows(content: Any) -> Iterator[Speed]:
    """Those of cpu_vit_b.py: a variant is an attention and a dtype, "blocked/bf16"."""
    for row in _rows(content):
        attention, _, kind = str(row.get("variant")).partition("/")
        if (
            not row.get("parity")
            or kind not in DTYPES
            or attention not in ("reference", "sdpa", "folded", "blocked")
        ):
            continue
        recipe = Recipe(dtype=DTYPES[kind], attention=attention)
        for name in (name for name, known in RECIPES.items() if known == recipe):
            yield Speed(
                recipe=name,
                definition=recipe.encoder_settings,
                model="vit_b",
                batch_size=1,
                gpu=None,
                capability=None,
                images_per_second=1 / row["seconds"],
                peak_bytes=row["peak_resident_bytes"] - row["imports_resident_bytes"],
                compile_seconds=0.0,
                environment=_stamp(content["environment"]),
            )


def accuracies(contents: list[Content]) -> list[Evidence]:
    """What each rounding lost of fp32's mean IoU on the packaged weights, in points.

    Only results of the same masks are compared. The loss is the largest among the ways of asking,
    of which `samfast eval` knows three: a click's best mask, the best of its three, and a box.
    """
    scores = [(file, row) for file, content in contents for row in _scores(content)]
    exact = [
        row
        for _, row in scores
        if RECIPES[row["recipe"]].dtype == torch.float32 and not _lossy(row)
    ]
    print_of = _packaged_fingerprint() if scores else ""
    worst: dict[str, Evidence] = {}
    for file, row in scores:
        recipe = RECIPES[row["recipe"]]
        like = [other for other in exact if _set(other) == _set(row)]
        if (recipe.dtype == torch.float32 and not recipe.lossy) or not like:
            continue
        if recipe.sparsify is not None:
            continue  # pruned weights are another checkpoint's
        reference = max(like, key=lambda other: str(other["environment"]["date"]))
        losses = {
            name: 100 * (reference[prompt][score] - row[prompt][score])
            for name, prompt, score in (
                ("click", "point", "miou"),
                ("click, best of three", "point", "miou_oracle"),
                ("box", "box", "miou"),
            )
        }
        new = Evidence(
            fingerprint=print_of,
            checkpoint=PACKAGED,
            model=PACKAGED,
            recipe=row["recipe"],
            rounding=rounding(recipe),
            kind="miou",
            loss_points=max(losses.values()),
            photos=row["images"],
            photo_set=f"{row['masks']} annotated masks, {Path(file).name}",
            details={
                "reference": reference["recipe"],
                "loss_points": losses,
                "miou": {prompt: row[prompt]["miou"] for prompt in ("point", "box")},
            },
            environment=_stamp(row["environment"]),
        )
        old = worst.get(new.rounding)
        # Of two measurements of a rounding, on two devices for example, the worse one counts.
        if old is None or old.loss_points <= new.loss_points:
            worst[new.rounding] = new
    return [worst[key] for key in sorted(worst)]


def _scores(content: Any) -> Iterator[dict[str, Any]]:
    """Results of `samfast eval --json` on the packaged weights, one by itself or a list, each with
    its recipe.
    """
    for row in (content, *_rows(content)):
        if isinstance(row, dict) and row.get("model") == PACKAGED:
            name = row.get("recipe") or _quantized(row)
            whole = isinstance(row.get("point"), dict) and isinstance(row.get("box"), dict)
            if name in RECIPES and whole and row.get("images") and row.get("masks"):
                yield row | {"recipe": name}


def _quantized(row: dict[str, Any]) -> str | None:
    """The first recipe that rounds as a row of quantized_vit_xs.py; None for pruned weights,
    another checkpoint's.
    """
    if not row.get("quantize") or row.get("prune"):
        return None
    recipe = Recipe(
        dtype=torch.bfloat16,
        quantize=row["quantize"],
        quantized_layers=tuple(row["quantized_layers"]),
    )
    return next(
        (name for name, known in RECIPES.items() if rounding(known) == rounding(recipe)), None
    )


def _rows(content: Any) -> list[dict[str, Any]]:
    rows = content if isinstance(content, list) else content.get("rows", [])
    return [row for row in rows if isinstance(row, dict)]


def _lossy(row: dict[str, Any]) -> bool:
    return RECIPES[row["recipe"]].lossy


def _set(row: dict[str, Any]) -> tuple[Any, ...]:
    """Tells whether two results are of the same masks: what filled boxes score depends on nothing
    else.
    """
    return row["images"], row["masks"], row["point"]["filled_box"]


def _stamp(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: environment[name] for name in STAMP if name in environment}


def _packaged_fingerprint() -> str:
    import samfast

    sam = samfast.load(PACKAGED, device="cpu", recipe="fp32")
    return evidence.checkpoint_fingerprint(sam.model, sam.fingerprint)


if __name__ == "__main__":
    sys.exit(main())
