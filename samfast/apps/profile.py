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
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="default: a synthetic one")
    parser.add_argument(
        "--out",
        default="samfast-profile",
        metavar="DIR",
        help="the folder for trace.json (for ui.perfetto.dev), profile.json and profile.txt (default: %(default)s)",
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

    result = profile.profile(load_model(args), args.out, image=args.image, top=args.top)
    for line in profile.describe(result).splitlines():
        console.result(line)
    return 0
