"""`samfast profile`: where the time and the memory of a batch go."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from samfast.cli import image_files
from samfast.cli.common_options import (
    add_command,
    add_max_pixels_option,
    add_model_options,
    load_model,
    positive_int,
)
from samfast.cli.console import Console, columns
from samfast.cli.segment_command import make_writable

OUT = "samfast-profile"

SHORT = 12
"""Rows of a table in the terminal; profile.json has all."""

DESCRIPTION = """\
Run a batch of --batch-size images several times. Print time by region and by kernel, the GPU's idle
time and what waited for it, and write a trace and a memory snapshot."""

EPILOG = """\
files:
  trace.json.gz  the trace; open it in https://ui.perfetto.dev. Its regions are preprocess, encoder,
                 prompts, decoder and masks
  memory.pickle  on a GPU: PyTorch's snapshot of its memory; open it in
                 https://pytorch.org/memory_viz
  profile.json   all figures of the summary, written last"""

HOW_TO_OPEN = {
    "trace.json.gz": "open it in https://ui.perfetto.dev",
    "memory.pickle": "open it in https://pytorch.org/memory_viz",
    "profile.json": "this summary as data",
}


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "profile",
        run,
        help="show where time and memory go",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a file, a directory or a glob; the first --batch-size images are taken (default: "
        "synthetic ones)",
    )
    add_max_pixels_option(parser)
    parser.add_argument(
        "--points",
        type=positive_int,
        default=8,
        metavar="N",
        help="clicks in each image (default: 8)",
    )
    parser.add_argument(
        "--out",
        default=OUT,
        metavar="DIR",
        help="the folder to write, made if absent (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=3, metavar="N", help="traced runs (default: 3)"
    )
    add_model_options(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Profile; 0, or 1 if an image is missing."""
    from samfast.device.machine import resolve_device

    resolve_device(args.device)
    images: Sequence[Path] | None = None
    if args.images:
        files, missing = image_files.plan(args.images, Path(args.out), (), console)
        if missing:
            return 1
        images = [file.path for file in files]
    make_writable(Path(args.out))
    from samfast.bench import profiler

    sam = load_model(args)
    if images is not None and len(images) > sam.batch_size:
        console.warn(
            f"the first {sam.batch_size} of {len(images)} images are profiled (more: --batch-size)"
        )
    with console.progress(profiler.STEPS, "step") as advance:
        result = profiler.profile(
            sam,
            args.out,
            images=images,
            points=args.points,
            repeats=args.repeats,
            progress=advance,
        )
    for line in describe(result):
        console.result(line)
    for name in result["files"]:
        console.result(f"{Path(args.out) / name}: {HOW_TO_OPEN[name]}")
    return 0


def describe(result: dict[str, Any]) -> Iterator[str]:
    """The summary as short tables, line by line."""
    workload, seconds, environment = result["workload"], result["seconds"], result["environment"]
    on_gpu = environment["gpu"] is not None
    images = f"{workload['images']} image{'s' if workload['images'] > 1 else ''}"
    device = environment["gpu"] or environment["cpu"] or "CPU"
    yield f"{result['model']}, recipe {result['recipe']}, {device}"
    yield (
        f"{images}, {workload['points']} clicks: {_milliseconds(seconds['alone'])} ms a run, "
        f"{_milliseconds(seconds['traced'])} ms traced"
    )
    if on_gpu:
        yield (
            f"the GPU idles {_percent(result['idle_share_alone'])} of a run, "
            f"{_percent(result['idle_share'])} of a traced one, which the profiler slows"
        )
    keys = ("host_seconds", "gpu_busy_seconds", "gpu_idle_seconds") if on_gpu else ("host_seconds",)
    headings = ("region", "host ms", "GPU ms", "idle ms", "idle") if on_gpu else ("region", "ms")
    yield ""
    yield from columns(
        headings,
        [
            [name, *(_milliseconds(row[key]) for key in keys)]
            + ([_percent(row["idle_share"])] if on_gpu else [])
            for name, row in result["regions"].items()
        ],
    )
    yield ""
    yield from columns(
        ("calls", "ms", "share", "class", "kernel" if on_gpu else "operator"),
        [
            [f"{r['calls']:g}", f"{r['ms']:.3f}", _percent(r["share"]), r["class"], r["name"][:90]]
            for r in result["kernels"][:SHORT]
        ],
    )
    yield ""
    yield from _waits(result["waits"])
    peak = result["memory"]["peak_bytes"]
    if peak is not None:
        whose = "" if on_gpu else " beside what the process had before"
        yield f"peak memory: {peak / 2**20:.0f} MiB{whose}"


def _waits(waits: list[dict[str, Any]] | None) -> list[str]:
    if waits is None:
        return ["no GPU: kernels, idle time, waits and the memory snapshot need one"]
    if not waits:
        return ["nothing waited for the GPU"]
    return columns(
        ("waits", "region", "line"),
        [[str(row["calls"]), row["region"], row["line"]] for row in waits[:SHORT]],
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
