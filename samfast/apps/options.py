"""The options that several commands share, and loading the model that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from samfast.apps.console import CommandLineError

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
        help="vit_xs (packaged), vit_b, vit_l or vit_h; default: what --checkpoint holds, else vit_xs",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=".pth, .safetensors, a directory or a Hugging Face id; default: the model's own",
    )
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one, else cpu")
    group.add_argument(
        "--recipe",
        default="auto",
        metavar="NAME",
        help="how to run the model; auto (the default) picks for the device",
    )
    group.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="images encoded at once (default: 1, on a GPU 8)"
    )


def load_model(args: argparse.Namespace) -> SamFast:
    """The engine that the model options describe; CommandLineError for a device that is not there."""
    check_device(args.device)
    import samfast

    name = args.model
    if name is None and args.checkpoint is None:
        name = "vit_xs"
    return samfast.load(
        name, checkpoint=args.checkpoint, device=args.device, recipe=args.recipe, batch_size=args.batch_size
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
        "--device cuda: torch finds no CUDA device (check nvidia-smi and the driver, or use --device cpu)"
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
