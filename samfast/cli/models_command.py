"""`samfast models`: the models known by name."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.cli.common_options import add_command, add_json_option
from samfast.cli.console import Console, columns


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "models",
        run,
        help="list the models known by name",
        description="List the models known by name: parameters, file size, where the weights are "
        "on\nthis machine, and their licence.",
    )
    add_json_option(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """List the models; 0."""
    from samfast import checkpoints

    console.report(checkpoints.listing(), table, args.json)
    return 0


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned lines under a line of headings."""
    if not rows:
        return []
    headings = ["size" if key == "bytes" else key for key in rows[0]]
    return columns(headings, [[_cell(key, value) for key, value in row.items()] for row in rows])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "bytes":
        return f"{value / 1e6:.0f} MB"
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    return str(value)
