"""`samfast`: the command line. Each command is a file beside this one.

To describe the options no file of this folder imports torch: `samfast --help` and the completion of
a command line answer at once. Commands import what they run with.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import samfast
from samfast.cli.common_options import Parser
from samfast.cli.console import (
    CommandLineError,
    Console,
    StdoutError,
    discard,
    flush_stdout,
    occupy_closed_descriptors,
)
from samfast.cli.termination import Raised, TerminatedError, raised_as_exceptions
from samfast.errors import ImageError, ImageWarning, SamfastError

COMMANDS = (
    "segment",
    "run",
    "convert",
    "serve",
    "label",
    "embed",
    "eval",
    "exec",
    "bench",
    "report",
    "profile",
    "calibrate",
    "quantize",
    "warmup",
    "cache",
    "models",
    "doctor",
)
"""Each is the module `samfast.cli.<name>_command`."""

INPUT_FAILED, WRONG_USAGE, SIGNALLED = 1, 2, 128
"""Exit codes; the number of a signal is added to the last one."""


def build_parser(names: Sequence[str] = COMMANDS) -> Parser:
    """The parser of the command line, with the commands of those names."""
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
    for name in names:
        command: Any = import_module(f"samfast.cli.{name}_command")
        command.add_parser(commands)
    return parser


@contextmanager
def _image_settings(console: Console, max_pixels: int | None) -> Iterator[None]:
    """Print ImageWarnings as messages, and set Pillow's limit of pixels, within the block."""
    from PIL import Image

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
    """Run one command and return its exit code. A user's mistake or a signal raises nothing."""
    occupy_closed_descriptors()
    console = Console()
    with raised_as_exceptions(process_ends=argv is None) as raised:
        code = _outcome(argv, console, raised)
    return max(code, _flushed(console))


def _run(argv: Sequence[str] | None, console: Console) -> int:
    """Run one command and return the exit code that it gives."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # A command waits for no other one to be imported.
    named = [name for name in arguments[:1] if name in COMMANDS]
    parser = build_parser(named or COMMANDS)
    _complete(parser)
    args = parser.parse_args(arguments)
    with _image_settings(console, getattr(args, "max_pixels", None)):
        code: Any = args.run(args, console)
    return int(code)


def _outcome(argv: Sequence[str] | None, console: Console, raised: Raised) -> int:
    """The exit code of a command, whatever it raises."""
    try:
        try:
            return _run(argv, console)
        except Exception as error:
            if raised.first is not None:  # the error is only what became of the signal
                raise raised.first from error
            raise
    except SystemExit as leave:  # argparse raises it after --help and --version
        return int(leave.code or 0)
    except ImageError as error:
        console.warn(str(error))
        return INPUT_FAILED
    except StdoutError as error:
        console.stdout_error = error
        return INPUT_FAILED
    except (CommandLineError, SamfastError) as error:
        # Errors that reach this point concern the model, the recipe or the data set: nothing ran.
        console.warn(str(error))
        return WRONG_USAGE
    except TerminatedError as ended:
        console.warn("terminated; files already written are intact")
        return SIGNALLED + ended.number
    except KeyboardInterrupt:
        console.warn("interrupted; files already written are intact")
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        # The reader of stdout has gone (samfast models | head), and Python would complain at exit.
        discard(sys.stdout)
        return INPUT_FAILED


def _flushed(console: Console) -> int:
    """0, or 1 after a message if stdout could not take what was printed."""
    try:
        flush_stdout()
    except StdoutError as error:
        console.stdout_error = console.stdout_error or error
    except BrokenPipeError:
        discard(sys.stdout)
    if console.stdout_error is not None:
        console.warn(f"{console.stdout_error}; files that were written are whole")
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)
    return INPUT_FAILED if console.stdout_error is not None else 0


def _complete(parser: Parser) -> None:
    """Answer a shell that completes a command line (argcomplete), and end the process then."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
