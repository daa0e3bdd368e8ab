"""`samfast warmup`: compile ahead of the first image, and keep the compiled code."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from samfast.cli.common_options import add_command, add_json_option, add_model_options, load_model
from samfast.cli.console import Console
from samfast.errors import UnsupportedRecipeError

if TYPE_CHECKING:
    from samfast.engine import SamFast

T = TypeVar("T")


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "warmup",
        run,
        help="compile a model ahead of time, so that the next process starts fast",
        description="Load a model, encode one batch and answer one click, and keep the compiled "
        "code in the\nuser's cache. The next process with the same model, recipe and batch size "
        "loads it from there.",
    )
    add_json_option(parser)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first try every configuration of the Triton kernels on this GPU, and keep the "
        "fastest correct one",
    )
    add_model_options(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Warm up and report how long it took; 0."""
    start = time.perf_counter()
    sam = load_model(args)
    seconds = time.perf_counter() - start
    tuned = tune(sam) if args.tune else None
    console.report({**warm_up(sam, seconds), "tuned": tuned}, describe, args.json)
    return 0


def tune(sam: SamFast) -> dict[str, Any]:
    """Tune the model's Triton kernels, use and keep the results; returns them as JSON values.

    Raises UnsupportedRecipeError for a recipe without Triton kernels.
    """
    from samfast.encoding import tune_kernels

    if sam.recipe.attention != "triton":
        raise UnsupportedRecipeError(
            f"--tune: recipe {sam.recipe_name} ({sam.recipe}) has no Triton kernels to tune; take "
            "one with attention=triton, as --recipe fused"
        )
    start = time.perf_counter()
    rows, path = tune_kernels.tune_model(sam.model, sam.name, sam.batch_size, sam.device)
    return {"seconds": time.perf_counter() - start, "kept": str(path), "rows": rows}


def warm_up(sam: SamFast, load_seconds: float) -> dict[str, Any]:
    """Encode a batch twice and answer a click; returns times and compiled code as JSON values."""
    import numpy as np

    from samfast.types import Prompts

    images = [np.full((480, 640, 3), 40 + i % 100, np.uint8) for i in range(sam.batch_size)]
    click = [Prompts(points=[[[320, 240]]], labels=[[1]])]
    embeddings, first_batch_seconds = _timed(sam, lambda: sam.embed(images))
    _, batch_seconds = _timed(sam, lambda: sam.embed(images))
    _, click_seconds = _timed(sam, lambda: sam.predict(embeddings[:1], click))
    call = None if sam.encode.compiled is None else sam.encode.compiled.first
    compiled = None
    if call is not None:
        compiled = {
            "seconds": call.seconds,
            "graphs": call.graphs,
            "from_cache": None if call.kept is None else str(call.kept.path),
            "cold_seconds": None if call.kept is None else call.kept.seconds,
            "saved": None if call.saved is None else str(call.saved),
        }
    return {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "settings": str(sam.recipe),
        "device": str(sam.device),
        "batch_size": sam.batch_size,
        "load_seconds": load_seconds,
        "first_batch_seconds": first_batch_seconds,
        "batch_seconds": batch_seconds,
        "click_seconds": click_seconds,
        "cuda_graphs": [] if sam.encode.graph is None else list(sam.encode.graph.sizes),
        "compiled": compiled,
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    images = _plural(report["batch_size"], "image")
    lines = [
        f"model     {report['model']}, recipe {report['recipe']} ({report['settings']}), on "
        f"{report['device']}",
        f"loaded    in {report['load_seconds']:.1f} s",
        f"first     batch of {images} in {report['first_batch_seconds']:.2f} s, "
        f"the next in {report['batch_seconds']:.3f} s, a click in {report['click_seconds']:.3f} s",
    ]
    tuned = report["tuned"]
    if tuned:
        for row in tuned["rows"]:
            config = ", ".join(f"{name} {value}" for name, value in row["config"].items())
            kind = "windows" if row["window"] else "global"
            lines.append(f"tuned     {kind} attention, {row['milliseconds']:.3f} ms: {config}")
        lines.append(f"tuned     in {tuned['seconds']:.0f} s, kept in {tuned['kept']}")
    compiled = report["compiled"]
    lines.append(f"compiled  {_compiled_text(compiled)}")
    if report["cuda_graphs"]:
        sizes = ", ".join(map(str, report["cuda_graphs"]))
        lines.append(f"recorded  CUDA graphs of {sizes} images")
    if compiled is not None:
        kept = compiled["saved"] or compiled["from_cache"]
        lines.append(f"kept      {kept or 'nothing: see the warning above'}")
    return lines


def _compiled_text(compiled: dict[str, Any] | None) -> str:
    if compiled is None:
        return "nothing: this recipe compiles nothing"
    seconds, graphs = compiled["seconds"], compiled["graphs"]
    if graphs:
        return f"{_plural(graphs, 'graph')}, in {seconds:.1f} s"
    if compiled["from_cache"]:
        cold = compiled["cold_seconds"]
        return f"nothing: {seconds:.1f} s from the cache instead of {cold:.1f} s"
    return f"nothing that torch's own cache did not hold, in {seconds:.1f} s"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _timed(sam: SamFast, call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and the seconds until the device has finished it."""
    import torch

    start = time.perf_counter()
    result = call()
    if sam.device.type == "cuda":
        torch.cuda.synchronize(sam.device)
    return result, time.perf_counter() - start
