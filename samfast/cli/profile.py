"""`samfast profile`: where the time and the memory of a batch go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfast.cli import image_files
from samfast.cli.common_options import (
    AUTOMATIC,
    add_model_options,
    fraction,
    load_model,
    positive_int,
)
from samfast.cli.console import CommandLineError, Console
from samfast.device.machine import resolve_device

OUT = "samfast-profile"

POINTS = 8

EPILOG = """\
files:
  index.html     tables of time by kernel and by region, the GPU's idle time, what waited for the
                 GPU and the line that made it wait, memory at its peak, and links to the rest; it
                 is written last
  trace.json.gz  the trace, for https://ui.perfetto.dev; regions: preprocess, encoder, prompts,
                 decoder, masks
  memory.html    memory over time
  memory.pickle  on a GPU: PyTorch's own snapshot of its memory, for https://pytorch.org/memory_viz
  profile.json   all figures as data"""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "profile",
        help="show where time and memory go",
        description="Run a batch of --batch-size images several times, and show where its time and "
        "memory go.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a file, a directory or a glob; the first --batch-size images are taken (default: "
        "synthetic ones)",
    )
    parser.add_argument(
        "--points",
        type=positive_int,
        metavar="N",
        help=f"objects asked in each image, a click each (default: {POINTS})",
    )
    parser.add_argument(
        "--out",
        default=OUT,
        metavar="DIR",
        help="the folder to write, made if absent (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        metavar="N",
        help="runs that are traced (default: 3)",
    )
    parser.add_argument(
        "--warmup", type=positive_int, default=2, metavar="N", help="runs before them (default: 2)"
    )
    parser.add_argument(
        "--top", type=positive_int, default=40, metavar="N", help="rows of a table (default: 40)"
    )
    everything = parser.add_argument_group("everything")
    everything.add_argument(
        "--automatic",
        action="store_true",
        help="find everything in each image, instead of clicking",
    )
    for option, kind, text in AUTOMATIC:
        everything.add_argument(
            option, type=kind, metavar="N" if kind is not fraction else "X", help=text
        )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Profile; 0, or 1 if an image is not there."""
    resolve_device(args.device)
    automatic = _automatic(args)
    images: Sequence[Path] | None = None
    if args.images:
        plan = image_files.plan(args.images, Path(args.out), ())
        for message in plan.failures:
            console.warn(message)
        if plan.failures:
            return 1
        images = [file.path for file in plan.files]
    from samfast.bench import profile

    sam = load_model(args)
    if images is not None and len(images) > sam.batch_size:
        console.warn(
            f"the first {sam.batch_size} of {len(images)} images are profiled (more: --batch-size)"
        )
    with console.progress(profile.STEPS, "step") as advance:
        result = profile.profile(
            sam,
            args.out,
            images=images,
            points=args.points or POINTS,
            automatic=automatic,
            repeats=args.repeats,
            warmup=args.warmup,
            top=args.top,
            progress=advance,
        )
    for line in profile.describe(result).splitlines():
        console.result(line)
    console.result(f"open {Path(args.out) / profile.INDEX}")
    return 0


def _automatic(args: argparse.Namespace) -> dict[str, Any] | None:
    """Options of the automatic search, or None where there are clicks; CommandLineError for both at
    once.
    """
    names = [option[2:].replace("-", "_") for option, _, _ in AUTOMATIC]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not args.automatic:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise CommandLineError(f"{option} is for --automatic (add that, or leave it out)")
        return None
    if args.points is not None:
        raise CommandLineError("--points is for clicks (leave it out, or --automatic)")
    return given
