"""`samfast warmup`: compile now what the first image would otherwise wait for, and keep it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from samfast.cli.console import Console, check_json_destination, write_json
from samfast.cli.options import add_model_options, load_model

if TYPE_CHECKING:
    from samfast.engine import SamFast


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "warmup",
        help="compile now, so that the next process starts at once",
        description="Load a model, encode one batch and answer one click, and keep what was "
        "compiled for that in "
        "the user's cache: the next process with the same model, recipe and batch size starts from "
        "it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help='the report as JSON; "-", or no FILE: on stdout',
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first try every configuration of the Triton kernels on this GPU and keep the fastest "
        "right one",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Warm up and say what it took; 0."""
    check_json_destination(args.json)
    start = time.perf_counter()
    sam = load_model(args)
    seconds = time.perf_counter() - start
    tuned = tune(sam) if args.tune else None
    report = {**warm_up(sam, seconds), "tuned": tuned}
    if args.json is not None:
        write_json(report, args.json)
    else:
        for line in describe(report):
            console.result(line)
    return 0


def tune(sam: SamFast) -> dict[str, Any]:
    """The best configuration of each of the model's Triton kernels, from now on and kept; as JSON
    values.

    Raises UnsupportedRecipeError for a recipe without them.
    """
    from samfast.encoding.tune_kernels import tune_model
    from samfast.errors import UnsupportedRecipeError

    if sam.recipe.attention != "triton":
        raise UnsupportedRecipeError(
            f"--tune: recipe {sam.recipe_name} ({sam.recipe}) has no Triton kernels to tune; take "
            "one with "
            "attention=triton, as --recipe fused"
        )
    start = time.perf_counter()
    rows, path = tune_model(sam.model, sam.name, sam.batch_size, sam.device)
    return {"seconds": time.perf_counter() - start, "kept": str(path), "rows": rows}


def warm_up(sam: SamFast, load_seconds: float) -> dict[str, Any]:
    """Encode a batch twice and answer a click; what it took, as JSON values."""
    import numpy as np

    from samfast.types import Prompts

    images = [np.full((480, 640, 3), 40 + i % 100, np.uint8) for i in range(sam.batch_size)]
    embeddings, first = _timed(sam, lambda: sam.embed(images))
    _, again = _timed(sam, lambda: sam.embed(images))
    _, click = _timed(
        sam, lambda: sam.predict(embeddings[:1], [Prompts(points=[[[320, 240]]], labels=[[1]])])
    )
    call = None if sam.encode.compiled is None else sam.encode.compiled.first
    return {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "settings": str(sam.recipe),
        "device": str(sam.device),
        "batch_size": sam.batch_size,
        "load_seconds": load_seconds,
        "first_batch_seconds": first,
        "batch_seconds": again,
        "click_seconds": click,
        "cuda_graphs": [] if sam.encode.graph is None else list(sam.encode.graph.sizes),
        "compiled": None
        if call is None
        else {
            "seconds": call.seconds,
            "graphs": call.graphs,
            "from_cache": None if call.kept is None else str(call.kept.path),
            "cold_seconds": None if call.kept is None else call.kept.seconds,
            "saved": None if call.saved is None else str(call.saved),
        },
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report for people, a line each."""
    size = report["batch_size"]
    images = f"{size} image{'s' if size > 1 else ''}"
    lines = [
        f"model     {report['model']}, recipe {report['recipe']} ({report['settings']}), on "
        f"{report['device']}",
        f"loaded    in {report['load_seconds']:.1f} s",
        f"first     batch of {images} in {report['first_batch_seconds']:.2f} s, "
        f"the next in {report['batch_seconds']:.3f} s, a click in {report['click_seconds']:.3f} s",
    ]
    if report.get("tuned"):
        for row in report["tuned"]["rows"]:
            config = ", ".join(f"{name} {value}" for name, value in row["config"].items())
            where = "windows" if row["window"] else "global"
            lines.append(f"tuned     {where} attention, {row['milliseconds']:.3f} ms: {config}")
        lines.append(
            f"tuned     in {report['tuned']['seconds']:.0f} s, kept in {report['tuned']['kept']}"
        )
    compiled = report["compiled"]
    if compiled is None:
        lines.append("compiled  nothing: this recipe compiles nothing")
    elif compiled["from_cache"] and not compiled["graphs"]:
        lines.append(
            f"compiled  nothing: {compiled['seconds']:.1f} s from the cache instead of "
            f"{compiled['cold_seconds']:.1f} s"
        )
    else:
        count = compiled["graphs"]
        what = (
            f"{count} graph{'s' if count != 1 else ''}"
            if count
            else "nothing that torch had not in its own cache"
        )
        lines.append(f"compiled  {what}, in {compiled['seconds']:.1f} s")
    if report["cuda_graphs"]:
        lines.append(
            f"recorded  CUDA graphs of {', '.join(map(str, report['cuda_graphs']))} images"
        )
    if compiled is not None:
        kept = compiled["saved"] or compiled["from_cache"]
        lines.append(f"kept      {kept}" if kept else "kept      nothing: see the warning above")
    return lines


def _timed(sam: SamFast, call: Any) -> tuple[Any, float]:
    """What the call returns and the seconds until the device is done with it."""
    start = time.perf_counter()
    result = call()
    if sam.device.type == "cuda":
        import torch

        torch.cuda.synchronize(sam.device)
    return result, time.perf_counter() - start
