"""Options that several commands share, and loading the model that they describe."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import samfast
from samfast.cli.console import (
    CommandLineError,
    Console,
    check_json_destination,
    stdout_stream,
)

if TYPE_CHECKING:
    import torch

    from samfast.engine import SamFast


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise CommandLineError with the message and where to find help."""
        raise CommandLineError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print --help or --version; argparse's own ignores that stdout cannot be written."""
        with stdout_stream() as stream:
            stream.write(message)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace, Console], int],
    *,
    help: str,
    description: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command to argparse's `commands`; returns its parser.

    run          called with the parsed arguments, returns the exit code
    help         one line for `samfast --help`
    description  shown above the options, epilog below them, line breaks as they are
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, --checkpoint, --device, --recipe and --batch-size."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="vit_xs (packaged with samfast), vit_b, vit_l or vit_h (default: the model in "
        "--checkpoint, or else vit_xs)",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a .pth or .safetensors file, a directory or a Hugging Face id (default: the "
        "model's published weights)",
    )
    add_device_option(group)
    group.add_argument(
        "--recipe",
        default="auto",
        metavar="NAME",
        help="how to run the model; samfast doctor lists the recipes (default: auto, which picks "
        "one for the device)",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="number of images to encode at once (default: 8 on a GPU, 1 on a CPU)",
    )


def add_device_option(parser: Any) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        type=device_text,
        metavar="NAME",
        help="where to run the model: cpu, cuda, cuda:1, ...; mps and xpu run the plain recipes "
        "and were not tested (default: cuda if available, or else cpu)",
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT and --model."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model's name (vit_xs, vit_b, ...), a .pth or .safetensors file, a directory or a "
        "Hugging Face id",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the model that the checkpoint must hold (default: any)"
    )


def add_images_argument(parser: argparse.ArgumentParser, nargs: str, note: str = "") -> None:
    """Add IMAGE..., after a note in its help, and --max-pixels."""
    help = f"{note}a file, a directory (without its subdirectories) or a glob"
    parser.add_argument("images", nargs=nargs, metavar="IMAGE", help=help)
    add_max_pixels_option(parser)


def add_max_pixels_option(parser: argparse.ArgumentParser) -> None:
    """Add --max-pixels, which `main` hands to Pillow."""
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="refuse images of more pixels than this, which may be decompression bombs (default: "
        "Pillow's limit, 89478485)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json [FILE], which replaces the text."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=json_destination,
        metavar="FILE",
        help='write JSON instead of text, to FILE, or to stdout if FILE is "-" or left out',
    )


def add_json_file_option(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE, which writes a file besides the text."""
    parser.add_argument(
        "--json",
        type=json_destination,
        metavar="FILE",
        help='also write the result as JSON; "-" writes only JSON, to stdout',
    )


def add_data_options(parser: Any, *, option: str, point_rule: str) -> None:
    """Add a data set and how its masks are prompted.

    option      the data set's name on the command line, "data" or "--data"
    point_rule  the default of --point-rule
    """
    optional: dict[str, Any] = {} if option.startswith("-") else {"nargs": "?"}
    parser.add_argument(
        option, metavar="DATA", help="a directory with images/ and annotations.json", **optional
    )
    parser.add_argument("--images", metavar="DIR", help="the directory of images, instead of DATA")
    parser.add_argument(
        "--annotations", metavar="FILE", help="a COCO instances file, instead of DATA"
    )
    parser.add_argument(
        "--min-area",
        type=non_negative_int,
        default=0,
        metavar="PX",
        help="leave out masks smaller than this, in pixels (default: 0)",
    )
    parser.add_argument(
        "--point-rule",
        choices=("edt", "seed"),
        default=point_rule,
        help="where to click on a mask. edt: on the pixel farthest from its border; seed: on its "
        "centre of mass if that is inside, as Segment Anything, Fast does "
        f"(default: {point_rule})",
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="use only the first N images"
    )


def check_data(args: argparse.Namespace, option: str, command: str) -> bool:
    """Whether a data set is given; CommandLineError if one is given twice or incompletely.

    option  how the command line names DATA: "DATA" or "--data DATA"
    """
    pair = args.images is not None, args.annotations is not None
    if args.data is not None and any(pair):
        raise CommandLineError(
            f"give either {option} or --images with --annotations, not both (see samfast {command} "
            "--help)"
        )
    if any(pair) and not all(pair):
        given, other = (
            ("--images", "--annotations FILE") if pair[0] else ("--annotations", "--images DIR")
        )
        raise CommandLineError(f"{given} needs {other} beside it (see samfast {command} --help)")
    return args.data is not None or all(pair)


def load_model(args: argparse.Namespace) -> SamFast:
    """The engine that the model options describe."""
    name = args.model
    if name is None and args.checkpoint is None:
        name = "vit_xs"
    from samfast.device.early_start import start_early

    start_early(args.device)  # CUDA starts while the engine is imported
    return samfast.load(
        name,
        checkpoint=args.checkpoint,
        device=args.device,
        recipe=args.recipe,
        batch_size=args.batch_size,
    )


def name_and_checkpoint(checkpoint: str, model: str | None) -> tuple[str | None, str | None]:
    """The first two arguments of `samfast.load` for CHECKPOINT and --model.

    A known model's name stands for its published weights. CommandLineError if --model is another.
    """
    from samfast.checkpoints import KNOWN

    if checkpoint not in KNOWN or Path(checkpoint).exists():
        return model, checkpoint
    if model not in (None, checkpoint):
        raise CommandLineError(
            f"--model {model}: the checkpoint is {checkpoint} (leave --model out)"
        )
    return checkpoint, None


def plain_attention(device: torch.device) -> str:
    """The fastest attention for float32 on this device that runs without compilation."""
    return "sdpa" if device.type == "cuda" else "blocked"


def device_text(text: str) -> str:
    """For argparse: a device as PyTorch names it; whether it is here is checked later."""
    if re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of cpu, cuda, cuda:1, ..., mps, xpu")
    return text


def json_destination(text: str) -> str:
    """For argparse: "-" or a file that can be written."""
    check_json_destination(text)
    return text


def _number(kind: Callable[[str], float], low: float, high: float, words: str) -> Any:
    """A type for argparse: the number that a text holds, which must lie from low to high."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return parse


positive_int = _number(int, 1, math.inf, "a whole number of at least 1")
non_negative_int = _number(int, 0, math.inf, "a whole number of at least 0")
non_negative_float = _number(float, 0, sys.float_info.max, "a number of at least 0")
fraction = _number(float, 0, 1, "a number from 0 to 1")


AUTOMATIC: tuple[tuple[str, Callable[[str], float], str], ...] = (
    ("--points-per-side", positive_int, "points along each side of the grid (default: 32)"),
    ("--points-per-batch", positive_int, "points to decode at once (default: 64)"),
    (
        "--pred-iou-thresh",
        fraction,
        "lowest predicted IoU of a mask (default: that of the checkpoint, else 0.88)",
    ),
    (
        "--stability-score-thresh",
        fraction,
        "lowest stability score of a mask (default: that of the checkpoint, else 0.95)",
    ),
    (
        "--crop-n-layers",
        non_negative_int,
        "also search overlapping crops of the image, in this many layers (default: 0)",
    ),
    (
        "--min-mask-region-area",
        non_negative_int,
        "remove parts and holes of masks smaller than this, in pixels (default: the checkpoint's "
        "own, else 0)",
    ),
)
"""Options of automatic mask generation, with segment_anything's names. `vit_xs` has thresholds of
its own (`samfast.checkpoints.known_checkpoints`)."""


def add_automatic_options(group: Any) -> None:
    """Add the options of AUTOMATIC."""
    for option, kind, text in AUTOMATIC:
        metavar = "X" if kind is fraction else "N"
        group.add_argument(option, type=kind, metavar=metavar, help=text)


def automatic_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of AUTOMATIC that were given, by their Python names; InputError if they do not
    fit each other.
    """
    from samfast.automatic_masks.options import AutomaticOptions

    names = [option[2:].replace("-", "_") for option, _, _ in AUTOMATIC]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    AutomaticOptions(**given)
    return given
