"""`samfast bench`: speed, memory and accuracy of the recipes on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.apps.console import Console, check_json_destination, columns, write_json
from samfast.apps.options import add_model_options, check_device

COLUMNS = (
    "recipe",
    "batch_size",
    "encoder_images_per_second",
    "images_per_second",
    "peak_memory_bytes",
    "status",
)


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "bench",
        help="measure the recipes on this machine",
        description="Measure the recipes on this machine, one row each; parity is checked in the same run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipes", nargs="+", metavar="NAME", help="default: every one (samfast doctor lists them)"
    )
    parser.add_argument("--json", metavar="FILE", help='write the rows as JSON; "-": on stdout')
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure; 0."""
    check_json_destination(args.json)
    check_device(args.device)
    from samfast.bench import ladder

    rows = ladder.run(
        args.recipes,
        model=args.model or "vit_xs",
        checkpoint=args.checkpoint,
        device=args.device,
        batch_size=args.batch_size or 1,
    )
    if args.json is not None:
        write_json(rows, args.json)
    if args.json != "-":
        for line in describe(rows):
            console.result(line)
    return 0


def describe(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned columns under a line of headings."""
    headings = [column.replace("_", " ") for column in COLUMNS]
    return columns(headings, [[_cell(column, row.get(column)) for column in COLUMNS] for row in rows])


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
