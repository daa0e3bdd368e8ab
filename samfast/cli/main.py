"""`samfast`: the command line. Each command has a file of its own beside this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import samfast
from samfast.cli import (
    bench,
    cache,
    calibrate,
    doctor,
    evaluate,
    models,
    profile,
    quantize,
    report,
    segment,
    warmup,
)
from samfast.cli.console import CommandLineError, Console
from samfast.cli.options import Parser
from samfast.errors import ImageError, SamfastError

COMMANDS = (
    segment,
    evaluate,
    bench,
    report,
    profile,
    calibrate,
    quantize,
    warmup,
    cache,
    models,
    doctor,
)

DONE, INPUT_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def build_parser() -> Parser:
    """The whole command line; each command's module adds its own part."""
    parser = Parser(
        prog="samfast",
        description="Segment Anything: the same masks, many times faster.",
        epilog="Exit codes: 0 done, 1 some input failed, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"samfast {samfast.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=Parser, required=True
    )
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Raises for no mistake of the user's, nor for Ctrl-C."""
    console = Console()
    try:
        return _run(argv, console)
    except SystemExit as leave:  # argparse, after --help and --version
        return int(leave.code or 0)
    except ImageError as error:
        console.warn(str(error))
        return INPUT_FAILED
    except (CommandLineError, SamfastError) as error:
        # Whatever else reaches this place concerns the model, the recipe or the data set: nothing
        # ran.
        console.warn(str(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        console.warn("interrupted; files already written are whole")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (samfast models | head). Python would complain again at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INPUT_FAILED


def _run(argv: Sequence[str] | None, console: Console) -> int:
    args = build_parser().parse_args(argv)
    result: Any = args.run(args, console)
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
