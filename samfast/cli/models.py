"""`samfast models`: the checkpoints that samfast knows by name."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.cli.console import Console, check_json_destination, columns, write_json


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "models",
        help="list the models, their sizes, where they are and their licences",
        description="List the models that samfast knows by name, their sizes, places and licences.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help='the same as JSON; "-", or no FILE: on stdout',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """List the models; 0."""
    check_json_destination(args.json)
    from samfast import checkpoints

    rows = [dict(row) for row in checkpoints.listing()]
    if args.json is not None:
        write_json(rows, args.json)
    else:
        for line in table(rows):
            console.result(line)
    return 0


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned columns, a line each, under a line of headings."""
    if not rows:
        return []
    headings = ["size" if key == "bytes" else key for key in rows[0]]
    return columns(headings, [[_cell(key, value) for key, value in row.items()] for row in rows])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key == "bytes":
        return f"{value / 1e6:.0f} MB"
    if key == "parameters" and isinstance(value, int):
        return f"{value / 1e6:.1f} M"
    return str(value)
