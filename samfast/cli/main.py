"""`samfast`: the command line. Each command is a file beside this one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

import samfast
from samfast.cli import (
    bench_command,
    cache_command,
    calibrate_command,
    doctor_command,
    eval_command,
    models_command,
    profile_command,
    quantize_command,
    report_command,
    segment_command,
    warmup_command,
)
from samfast.cli.common_options import Parser
from samfast.cli.console import CommandLineError, Console
from samfast.errors import ImageError, ImageWarning, SamfastError

COMMANDS = (
    segment_command,
    eval_command,
    bench_command,
    report_command,
    profile_command,
    calibrate_command,
    quantize_command,
    warmup_command,
    cache_command,
    models_command,
    doctor_command,
)

INPUT_FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="samfast",
        description="Segment Anything: the same masks, many times faster.",
        epilog="`samfast COMMAND --help` explains a command. Exit codes: 0 done, 1 some input "
        "failed, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"samfast {samfast.__version__}",
        help="show the version and exit",
    )
    commands = parser.add_subparsers(
        dest="command", title="commands", metavar="COMMAND", parser_class=Parser, required=True
    )
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


@contextmanager
def _image_settings(console: Console, max_pixels: int | None) -> Iterator[None]:
    """Print ImageWarnings as messages, and set Pillow's limit of pixels, within the block."""
    show, limit = warnings.showwarning, Image.MAX_IMAGE_PIXELS

    def print_ours(
        message: Warning | str, category: type[Warning], *args: Any, **more: Any
    ) -> None:
        if issubclass(category, ImageWarning):
            console.warn(str(message))
        else:
            show(message, category, *args, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("default", ImageWarning)
        warnings.showwarning = print_ours
        Image.MAX_IMAGE_PIXELS = max_pixels or limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A user's mistake or Ctrl-C raises nothing."""
    console = Console()
    try:
        args = build_parser().parse_args(argv)
        with _image_settings(console, getattr(args, "max_pixels", None)):
            code: Any = args.run(args, console)
        return int(code)
    except SystemExit as leave:  # argparse raises it after --help and --version
        return int(leave.code or 0)
    except ImageError as error:
        console.warn(str(error))
        return INPUT_FAILED
    except (CommandLineError, SamfastError) as error:
        # Errors that reach this point concern the model, the recipe or the data set: nothing ran.
        console.warn(str(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        console.warn("interrupted; files already written are intact")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (samfast models | head), and Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INPUT_FAILED
