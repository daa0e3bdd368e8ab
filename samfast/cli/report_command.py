"""`samfast report`: charts and a page, drawn from the JSON of `samfast bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from samfast.cli.bench_command import describe
from samfast.cli.common_options import add_command
from samfast.cli.console import Console
from samfast.cli.segment_command import make_writable
from samfast.errors import InputError

DESCRIPTION = """\
Draw charts of speed, memory, accuracy and the share of the device's ceiling from the JSON of
samfast bench, as SVG and PNG files, and write one HTML page of them all. Rows of different models,
devices, versions or commits stand apart."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "report",
        run,
        help="draw what samfast bench has measured",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS.json",
        help="files that samfast bench wrote with --json",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samfast-report"),
        metavar="DIR",
        help="default: samfast-report/",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Draw; 1 if a file could not be used."""
    from samfast.bench import charts, report_page, results

    charts.require()
    rows, failed = [], []
    for path in dict.fromkeys(args.results):
        try:
            rows += results.read(path)
        except InputError as error:
            failed.append(error)
    if not rows:
        raise failed[0]
    for problem in failed:
        console.warn(str(problem))
    make_writable(args.out)
    for path in report_page.write(rows, args.out, describe):
        console.result(str(path))
    for row in rows:
        if not results.has_figures(row):
            console.warn(
                f"{row['recipe']}, batch {row['batch_size']}, {row['model']} on "
                f"{results.place(row)}: {row['status']}"
            )
    return 1 if failed else 0
