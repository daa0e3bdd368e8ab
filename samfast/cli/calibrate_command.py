"""`samfast calibrate`: measure what quantization loses on the user's photos, for `auto` to use."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.cli.common_options import (
    add_checkpoint_argument,
    add_command,
    add_device_option,
    add_images_argument,
    add_json_file_option,
    non_negative_float,
    positive_int,
)
from samfast.cli.console import Console

BUDGET = 0.3
"""`samfast.recipes.choose.BUDGET`, whose module imports torch."""

DESCRIPTION = """\
Measure on your own photos how much accuracy a checkpoint loses under int8 and fp8. From then on,
the recipe "auto" may use those within the accuracy budget, for this checkpoint only."""

EPILOG = """\
Photos need no annotations: fp32 masks of the mirrored photo serve as labels, and both fp32 and the
recipe are scored against them on the photo itself. Losses are in points of mean IoU. What counts is
the upper end of a 95 % confidence interval, so that more photos can show a smaller loss, or a tenth
of the disagreement with fp32 beyond that of bfloat16, whichever is larger. The results of 8 photos
and more are kept in the cache directory (samfast doctor and samfast cache list them) and hold for
this version of samfast."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "calibrate",
        run,
        help="measure what quantization loses on a checkpoint, and allow it for auto",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_checkpoint_argument(parser)
    add_images_argument(parser, "+")
    add_device_option(parser)
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="the recipes to measure (default: the quantizing ones that run on the device)",
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="use only the first N photos"
    )
    parser.add_argument(
        "--budget",
        type=non_negative_float,
        default=BUDGET,
        metavar="P",
        help=f"loss that auto accepts, in points of mean IoU (default: {BUDGET:g})",
    )
    add_json_file_option(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, keep the results, and say what auto picks; 0, or 1 if a photo or keeping failed."""
    from samfast.cli import calibration

    return calibration.run(args, console)
