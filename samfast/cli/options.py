"""The options that several commands share, and loading the model that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from samfast.cli.console import CommandLineError

if TYPE_CHECKING:
    from samfast.engine import SamFast


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line gives one line and no page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise CommandLineError with the message and where help is."""
        raise CommandLineError(f"{message} (see {self.prog} --help)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --checkpoint, --device, --recipe, --batch-size."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="vit_xs (packaged), vit_b, vit_l or vit_h; default: what --checkpoint holds, else "
        "vit_xs",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=".pth, .safetensors, a directory or a Hugging Face id; default: the model's own",
    )
    group.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda if there is one, else cpu"
    )
    group.add_argument(
        "--recipe",
        default="auto",
        metavar="NAME",
        help="how to run the model; auto (the default) picks for the device",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="images encoded at once (default: 1, on a GPU 8)",
    )


def add_data_options(parser: Any, *, option: str, point_rule: str) -> None:
    """A data set and how it is asked: `option` ("data" or "--data"), --images, --annotations and
    the rest.

    point_rule  the default rule
    """
    optional: dict[str, Any] = {} if option.startswith("-") else {"nargs": "?"}
    parser.add_argument(
        option, metavar="DATA", help="a directory with images/ and annotations.json", **optional
    )
    parser.add_argument("--images", metavar="DIR", help="instead of DATA: where the images are")
    parser.add_argument("--annotations", metavar="FILE", help="instead of DATA: COCO instances")
    parser.add_argument(
        "--min-area",
        type=non_negative_int,
        default=0,
        metavar="PX",
        help="leave smaller masks out (default: 0)",
    )
    parser.add_argument(
        "--point-rule",
        choices=("edt", "seed"),
        default=point_rule,
        help="edt: the pixel farthest from the mask's border; seed: its centre of mass, if inside, "
        "as Segment "
        f"Anything, Fast has it (default: {point_rule})",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N images only")


def check_data(args: argparse.Namespace, option: str, command: str) -> bool:
    """Whether a data set is named; CommandLineError for one that is named twice, or by half.

    option  what DATA is called: "DATA" or "--data DATA"
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
    """The engine that the model options describe; CommandLineError for a device that is not
    there.
    """
    check_device(args.device)
    import samfast

    name = args.model
    if name is None and args.checkpoint is None:
        name = "vit_xs"
    return samfast.load(
        name,
        checkpoint=args.checkpoint,
        device=args.device,
        recipe=args.recipe,
        batch_size=args.batch_size,
    )


def check_device(device: str | None) -> None:
    """CommandLineError if `device` is cuda and this machine or this torch has none."""
    if device != "cuda":
        return
    import torch

    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise CommandLineError(
            f"--device cuda: the installed torch {torch.__version__} is built without CUDA "
            "(install a CUDA build, or use --device cpu)"
        )
    raise CommandLineError(
        "--device cuda: torch finds no CUDA device (check nvidia-smi and the driver, or use "
        "--device cpu)"
    )


def positive_int(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def non_negative_int(text: str) -> int:
    """For argparse: a whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value


def fraction(text: str) -> float:
    """For argparse: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
