"""The work of `samfast calibrate`: measure recipes on a checkpoint, keep and show the losses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import samfast
from samfast import recipes
from samfast.bench import agreement
from samfast.bench.environment import stamp
from samfast.checkpoints import quantized_checkpoint, resolve
from samfast.cli import image_files
from samfast.cli.common_options import name_and_checkpoint, plain_attention
from samfast.cli.console import CommandLineError, Console, columns
from samfast.device.machine import resolve_device
from samfast.engine import SamFast
from samfast.errors import OutputError, UnsupportedRecipeError
from samfast.recipes import RECIPES, Recipe, evidence, get, refusal
from samfast.recipes.evidence import MINIMUM_PHOTOS, Evidence, checkpoint_fingerprint, rounding


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, keep the results, and say what auto picks; 0, or 1 if a photo or keeping failed."""
    device = resolve_device(args.device)
    if args.checkpoint == "random":
        raise CommandLineError(
            "random weights say nothing about a checkpoint (give the one that you will use)"
        )
    chosen = named(args.recipes, device) if args.recipes else candidates(device)
    photos, failed = image_files.photos(args.images, console, "no photo to calibrate on")
    loader = Loader(args.checkpoint, args.model, device)
    figures, unusable = _measure(loader, photos[: args.limit], chosen, device, console)
    failed += unusable
    rows = evidence_rows(figures, chosen, loader, device)
    path = None
    # Too few photos are no evidence, and must not replace what more of them have shown.
    kept = [row for row in rows if row.photos >= MINIMUM_PHOTOS]
    try:
        path = evidence.save_calibrated(kept) if kept else None
    except OutputError as error:
        failed += 1
        console.warn(f"the results are not kept, so auto cannot use them: {error}")
    choice = recipes.choose(
        device, fingerprint=loader.fingerprint, model=loader.name, budget=args.budget
    )
    report = {
        "checkpoint": args.checkpoint,
        "model": loader.name,
        "device": str(device),
        "fingerprint": loader.fingerprint,
        "budget": args.budget,
        "failed": failed,
        "rows": judged(figures, chosen, args.budget),
        "auto": {"recipe": choice.name, "why": choice.reason},
        "saved": None if path is None else str(path),
        "environment": rows[0].environment,
    }
    console.report(report, describe, args.json, also_text=True)
    return 1 if failed else 0


def _measure(
    loader: Loader,
    photos: Sequence[Path],
    chosen: dict[str, Recipe],
    device: torch.device,
    console: Console,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Each recipe's figures (`samfast.bench.agreement`), and the number of unusable photos."""
    unusable: list[str] = []

    def on_error(message: str) -> None:
        unusable.append(message)
        console.warn(message)

    with console.progress(agreement.steps(len(photos), chosen), "photo") as advance:
        try:
            figures = agreement.measure(
                loader,
                photos,
                chosen,
                plain_attention(device),
                progress=advance,
                on_error=on_error,
                on_refusal=console.warn,
            )
        except torch.OutOfMemoryError:
            raise CommandLineError(
                "the device's memory ran out (calibrate on a larger GPU or with --device cpu)"
            ) from None
    return figures, len(unusable)


class Loader:
    """Loads a checkpoint under one recipe after another.

    checkpoint         a known model's name, or what `samfast.load` takes; model, a name or None
    name, fingerprint  of the checkpoint, known after the first call, which must be for fp32
    """

    name: str
    fingerprint: str

    def __init__(self, checkpoint: str, model: str | None, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self._model, self._source = name_and_checkpoint(checkpoint, model)
        self._device = device
        self._first = True
        if quantized_checkpoint.find(resolve(self._model, self._source)) is not None:
            raise CommandLineError(
                f"{checkpoint}: its weights are already quantized or pruned (calibrate the "
                "checkpoint it was made from; samfast eval scores this file)"
            )

    def __call__(self, recipe: Recipe) -> SamFast:
        """The model under a recipe, encoding one image at a time."""
        sam = samfast.load(
            self._model, checkpoint=self._source, device=self._device, recipe=recipe, batch_size=1
        )
        if self._first:  # under fp32 the weights are still those of the file
            self.name = sam.name
            self.fingerprint = checkpoint_fingerprint(sam.model, sam.fingerprint)
            self._first = False
        return sam


def candidates(device: torch.device) -> dict[str, Recipe]:
    """The quantizing recipes that run on the device, one for each rounding.

    Sparse recipes are left out: they need weights that were pruned for them. CommandLineError if
    no recipe is left.
    """
    by_rounding: dict[str, tuple[str, Recipe]] = {}
    for name, recipe in RECIPES.items():
        if recipe.quantize is None or recipe.sparsify is not None:
            continue
        measured = runnable(recipe, device)
        if measured is not None:
            by_rounding.setdefault(rounding(recipe), (name, measured))
    if not by_rounding:
        raise CommandLineError(
            f"no quantizing recipe runs on {device}, so there is nothing to measure"
        )
    return dict(by_rounding.values())


def named(names: Sequence[str], device: torch.device) -> dict[str, Recipe]:
    """The recipes of --recipes in the form that is measured; RecipeError if one cannot be."""
    recipes: dict[str, Recipe] = {}
    for name in dict.fromkeys(names):
        measured = runnable(get(name), device)
        if measured is None:
            raise UnsupportedRecipeError(
                f"recipe {name} on {device}: {refusal(plainest(get(name), device), device)}"
            )
        recipes[name] = measured
    return recipes


def runnable(recipe: Recipe, device: torch.device) -> Recipe | None:
    """A recipe of the same rounding that runs on the device without compilation, or None.

    Only rounding can cost accuracy, so the minutes that compilation takes are saved.
    """
    for each in (recipe, plainest(recipe, device)):
        if each.compile is None and refusal(each, device) is None:
            return each
    return None


def plainest(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with a plain attention and torch's products, without compilation, fusion or CUDA
    graphs.
    """
    return replace(
        recipe,
        attention=plain_attention(device),
        products="torch",
        compile=None,
        fuse=False,
        graph=False,
    )


def evidence_rows(
    figures: dict[str, dict[str, Any]],
    chosen: dict[str, Recipe],
    loader: Loader,
    device: torch.device,
) -> list[Any]:
    """One `Evidence` to keep for each recipe."""
    environment = stamp(device)
    rows = []
    for name, figure in figures.items():
        details = figure | {"run_as": str(chosen[name])}
        rows.append(
            Evidence(
                fingerprint=loader.fingerprint,
                checkpoint=loader.checkpoint,
                model=loader.name,
                recipe=name,
                rounding=rounding(chosen[name]),
                kind="agreement",
                loss_points=details.pop("loss_points"),
                photos=details.pop("photos"),
                photo_set="photos given to samfast calibrate",
                details=details,
                environment=environment,
            )
        )
    return rows


def judged(
    figures: dict[str, dict[str, Any]], chosen: dict[str, Recipe], budget: float
) -> list[dict[str, Any]]:
    """Each recipe's figures, with `unlocked`, whether auto may use it, and `why` it may not."""
    rows = []
    for name, figure in figures.items():
        why = ""
        if figure["photos"] < MINIMUM_PHOTOS:
            why = f"measured on {figure['photos']} photos, at least {MINIMUM_PHOTOS} are needed"
        elif not figure["loss_points"] <= budget:
            why = f"may lose {figure['loss_points']:.2f} points, the budget is {budget:g}"
        row = {"recipe": name, "run_as": str(chosen[name]), **figure}
        rows.append(row | {"unlocked": not why, "why": why})
    return rows


HEADINGS = (
    "recipe",
    "may lose",
    "click",
    "box",
    "IoU with fp32",
    "bf16's",
    "",
)


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    rows = report["rows"]
    cells = [
        (
            row["recipe"],
            f"{row['loss_points']:.2f}",
            *(
                f"{row[kind]['loss']:.2f} ± {row[kind]['uncertainty']:.2f}"
                for kind in ("click", "box")
            ),
            f"{row['agreement_miou']:.4f}",
            f"{row['yardstick_miou']:.4f}",
            row["why"] or "unlocked",
        )
        for row in rows
    ]
    lines = [
        f"{report['checkpoint']} ({report['model']}, {report['fingerprint'][:12]}) on "
        f"{report['device']}: {rows[0]['photos']} photos, {rows[0]['objects']} objects; "
        "losses in points of mean IoU",
        *columns(HEADINGS, cells),
    ]
    if report["saved"]:
        lines.append(f"kept in {report['saved']}")
    elif all(row["photos"] < MINIMUM_PHOTOS for row in rows):
        lines.append(
            f"not kept: {rows[0]['photos']} photos say too little; give at least {MINIMUM_PHOTOS}"
        )
    lines.append(f"auto now takes {report['auto']['recipe']}: {report['auto']['why']}")
    return lines
