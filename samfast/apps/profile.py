"""`samfast profile`: where the time of one run goes."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.apps.console import Console
from samfast.apps.options import add_model_options


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "profile",
        help="show where the time goes",
        description="Trace embedding and answering one click, and show where the time goes.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Profile; 0."""
    raise NotImplementedError
