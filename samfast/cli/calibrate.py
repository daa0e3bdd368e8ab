"""`samfast calibrate`: what quantization loses on a checkpoint, measured on the user's photos, for
`auto` to use.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import inputs
from samfast.cli.console import (
    CommandLineError,
    Console,
    check_json_destination,
    columns,
    write_json,
)
from samfast.cli.options import check_device, positive_int
from samfast.errors import OutputError

if TYPE_CHECKING:
    import torch

    from samfast.engine import SamFast
    from samfast.recipes import Recipe

DESCRIPTION = """\
Measure on your own photos what int8 and fp8 lose on a checkpoint. What stays within the accuracy
budget, the recipe "auto" may take from then on, for this checkpoint only."""

EPILOG = """\
Photos need no annotations: fp32 looks at each one mirrored, its masks there are the labels, and
fp32 and the recipe are both scored against them on the photo as it is. Loss is in points of mean
IoU; counted is the upper end of its 95 % interval, so that more photos can show a smaller loss, or
a tenth of the disagreement with fp32 beyond that of bfloat16, whichever is more. The results are
kept in the cache directory (samfast doctor lists them) and are good for this version of samfast."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure what quantization loses on a checkpoint, and unlock it for auto",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model's name (vit_xs, vit_b, ...), .pth, .safetensors, a directory or a Hugging "
        "Face id",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a directory (not searched deeper) or a glob",
    )
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint holds")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda if there is one, else cpu"
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="default: the quantizing ones that the device runs",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N photos only")
    parser.add_argument(
        "--budget",
        type=points_of_iou,
        metavar="P",
        help="points of mean IoU that auto may give up (default: 0.3)",
    )
    parser.add_argument("--json", metavar="FILE", help='write the result as JSON; "-": on stdout')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, keep the rows, say what auto takes; 0, or 1 if a photo could not be used or the rows
    not be kept.
    """
    check_json_destination(args.json)
    check_device(args.device)
    if args.checkpoint == "random":
        raise CommandLineError(
            "random weights are evidence of nothing (give the checkpoint that you will use)"
        )
    import torch

    from samfast import recipes
    from samfast.bench import agreement
    from samfast.recipes import evidence
    from samfast.recipes.choose import BUDGET

    budget = BUDGET if args.budget is None else args.budget
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = named(args.recipes, device) if args.recipes else candidates(device)
    photos, failed = photographs(args.images, args.limit, console)
    loader = Loader(args.checkpoint, args.model, device)

    def bad(message: str) -> None:
        nonlocal failed
        failed += 1
        console.warn(message)

    with console.progress(agreement.steps(len(photos), chosen), "photo") as advance:
        try:
            figures = agreement.measure(
                loader,
                photos,
                chosen,
                plain_attention(device),
                progress=advance,
                on_error=bad,
                on_refusal=console.warn,
            )
        except torch.OutOfMemoryError:
            raise CommandLineError(
                "the device's memory ran out (calibrate on a larger GPU or with --device cpu)"
            ) from None
    rows = evidence_rows(figures, chosen, loader, device)
    path = None
    try:
        path = evidence.save_calibrated(rows)
    except OutputError as error:
        failed += 1
        console.warn(f"the results are not kept, so auto does not know them: {error}")
    choice = recipes.choose(
        device, fingerprint=loader.fingerprint, model=loader.name, budget=budget
    )
    report = {
        "checkpoint": args.checkpoint,
        "model": loader.name,
        "device": str(device),
        "fingerprint": loader.fingerprint,
        "budget": budget,
        "failed": failed,
        "rows": [
            dict(row) | {"unlocked": not why, "why": why}
            for row, why in judged(figures, chosen, budget)
        ],
        "auto": {"recipe": choice.name, "why": choice.reason},
        "saved": None if path is None else str(path),
        "environment": rows[0].environment,
    }
    if args.json is not None:
        write_json(report, args.json)
    if args.json != "-":
        for line in describe(report):
            console.result(line)
    return 1 if failed else 0


class Loader:
    """Loads the checkpoint under one recipe after the other; knows its name and fingerprint after
    the first.

    checkpoint  a known model's name, or what `samfast.load` takes; model, a name or None
    """

    name: str
    fingerprint: str

    def __init__(self, checkpoint: str, model: str | None, device: torch.device) -> None:
        from samfast.checkpoints import KNOWN, quantized_checkpoint, resolve

        self._known = checkpoint in KNOWN and not Path(checkpoint).exists()
        if self._known and model not in (None, checkpoint):
            raise CommandLineError(
                f"--model {model}: the checkpoint is {checkpoint} (leave --model out)"
            )
        self.checkpoint = checkpoint
        self._model = checkpoint if self._known else model
        self._device = device
        self._first = True
        path = resolve(self._model if self._known else None, None if self._known else checkpoint)
        if quantized_checkpoint.find(path) is not None:
            raise CommandLineError(
                f"{checkpoint}: its weights are quantized or pruned already (calibrate the "
                "checkpoint it was "
                "made from; samfast eval scores this file)"
            )

    def __call__(self, recipe: Recipe) -> SamFast:
        """The model under that recipe, encoding one image at a time."""
        import samfast
        from samfast.recipes.evidence import checkpoint_fingerprint

        sam = samfast.load(
            self._model,
            checkpoint=None if self._known else self.checkpoint,
            device=self._device,
            recipe=recipe,
            batch_size=1,
        )
        if self._first:  # fp32, whose weights are still those of the file
            self.name = sam.name
            self.fingerprint = checkpoint_fingerprint(sam.model, sam.fingerprint)
            self._first = False
        return sam


def candidates(device: torch.device) -> dict[str, Recipe]:
    """The quantizing recipes that the device runs, one for each rounding; CommandLineError if there
    is none.

    Not the sparse ones: they need weights that were pruned for them, which no plain checkpoint has.
    """
    from samfast.recipes import RECIPES
    from samfast.recipes.evidence import rounding

    found: dict[str, tuple[str, Recipe]] = {}
    for name, recipe in RECIPES.items():
        own = runnable(recipe, device)
        if recipe.quantize is not None and recipe.sparsify is None and own is not None:
            found.setdefault(rounding(recipe), (name, own))
    if not found:
        raise CommandLineError(
            f"no quantizing recipe runs on {device}, so there is nothing to measure"
        )
    return dict(found.values())


def named(names: Sequence[str], device: torch.device) -> dict[str, Recipe]:
    """The recipes that --recipes names, as they are run; RecipeError for one that there is not or
    that is refused.
    """
    from samfast.errors import UnsupportedRecipeError
    from samfast.recipes import get, refusal

    found: dict[str, Recipe] = {}
    for name in dict.fromkeys(names):
        own = runnable(get(name), device)
        if own is None:
            raise UnsupportedRecipeError(
                f"recipe {name} on {device}: {refusal(plainest(get(name), device), device)}"
            )
        found[name] = own
    return found


def runnable(recipe: Recipe, device: torch.device) -> Recipe | None:
    """The recipe if it runs there at once; else the plain one that rounds the same; None if that is
    refused too.

    Only what a recipe rounds can cost accuracy, so nothing is compiled, which takes minutes.
    """
    from samfast.recipes import refusal

    for own in (recipe, plainest(recipe, device)):
        if own.compile is None and refusal(own, device) is None:
            return own
    return None


def plainest(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe without what is exact in it: no compilation, fusion or graph, a plain
    attention.
    """
    return replace(recipe, attention=plain_attention(device), compile=None, fuse=False, graph=False)


def plain_attention(device: torch.device) -> str:
    """The attention of fp32 and of the yardstick: exact, and not slow."""
    return "sdpa" if device.type == "cuda" else "blocked"


def photographs(
    arguments: Sequence[str], limit: int | None, console: Console
) -> tuple[list[Path], int]:
    """The files that the arguments name, and how many arguments name none; CommandLineError if
    there is no file.
    """
    plan = inputs.plan(arguments, Path(), ())
    for message in plan.failures:
        console.warn(message)
    photos = [job.source for job in plan.jobs][:limit]
    if not photos:
        raise CommandLineError(
            "no photo to calibrate on (give files, directories or globs of images)"
        )
    return photos, len(plan.failures)


def evidence_rows(
    figures: dict[str, dict[str, Any]],
    chosen: dict[str, Recipe],
    loader: Loader,
    device: torch.device,
) -> list[Any]:
    """A row to keep for each recipe."""
    from samfast.bench.environment import stamp
    from samfast.recipes.evidence import Evidence, rounding

    environment = stamp(device)
    return [
        Evidence(
            fingerprint=loader.fingerprint,
            checkpoint=loader.checkpoint,
            model=loader.name,
            recipe=name,
            rounding=rounding(chosen[name]),
            kind="agreement",
            loss_points=own["loss_points"],
            photos=own["photos"],
            photo_set="photos given to samfast calibrate",
            details={
                key: value for key, value in own.items() if key not in ("loss_points", "photos")
            }
            | {"run_as": str(chosen[name])},
            environment=environment,
        )
        for name, own in figures.items()
    ]


def judged(
    figures: dict[str, dict[str, Any]], chosen: dict[str, Recipe], budget: float
) -> list[tuple[dict[str, Any], str]]:
    """Each recipe's figures, and why they do not unlock it; "" if they do."""
    from samfast.recipes.evidence import MINIMUM_PHOTOS

    rows = []
    for name, own in figures.items():
        why = ""
        if own["photos"] < MINIMUM_PHOTOS:
            why = f"measured on {own['photos']} photos, at least {MINIMUM_PHOTOS} are needed"
        elif not own["loss_points"] <= budget:
            why = f"may lose {own['loss_points']:.2f} points, the budget is {budget:g}"
        rows.append(({"recipe": name, "run_as": str(chosen[name])} | own, why))
    return rows


def points_of_iou(text: str) -> float:
    """For argparse: a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def describe(report: dict[str, Any]) -> list[str]:
    """The report for people, a line each."""
    headings = (
        "recipe",
        "may lose",
        "click",
        "box",
        "IoU with fp32",
        "bf16's",
        "other mask",
        "flipped px",
        "",
    )
    cells = []
    for row in report["rows"]:
        cells.append(
            (
                row["recipe"],
                f"{row['loss_points']:.2f}",
                *(
                    f"{row[kind]['loss']:.2f} ± {row[kind]['uncertainty']:.2f}"
                    for kind in ("click", "box")
                ),
                f"{row['agreement_miou']:.4f}",
                f"{row['yardstick_miou']:.4f}",
                f"{row['other_mask']:.1%}",
                f"{row['flipped_pixels']:.2%}",
                row["why"] or "unlocked",
            )
        )
    first = report["rows"][0]
    lines = [
        f"{report['checkpoint']} ({report['model']}, {report['fingerprint'][:12]}) on "
        f"{report['device']}: "
        f"{first['photos']} photos, {first['objects']} objects, {first['negligible']} negligible "
        "ones left out; "
        "losses in points of mean IoU",
        *columns(headings, cells),
    ]
    for row in report["rows"]:
        worst = row["worst"]
        lines.append(
            f"least agreement of {row['recipe']}: {worst['photo']} ({worst['agreement_miou']:.4f})"
        )
    if report["saved"]:
        lines.append(f"kept in {report['saved']}")
    lines.append(f"auto now takes {report['auto']['recipe']}: {report['auto']['why']}")
    return lines
