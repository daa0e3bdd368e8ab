"""`samfast profile`: where the time of one run goes."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.apps.console import Console
from samfast.apps.options import add_model_options, check_device, load_model, positive_int


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "profile",
        help="show where the time goes",
        description="Trace embedding and answering one click, and show where the time goes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="also write the trace, for chrome://tracing or Perfetto"
    )
    parser.add_argument(
        "--top", type=positive_int, default=15, metavar="N", help="operations shown (default: 15)"
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Profile; 0."""
    check_device(args.device)
    from samfast.bench import profile

    for line in profile.run(load_model(args), trace=args.trace, top=args.top).splitlines():
        console.result(line)
    return 0
