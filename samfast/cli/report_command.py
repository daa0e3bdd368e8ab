"""`samfast report`: charts and a page, drawn from the JSON of `samfast bench` and `samfast
eval`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from samfast.cli.console import Console
from samfast.cli.segment_command import make_writable
from samfast.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "report",
        help="draw what samfast bench and eval have measured",
        description="Draw charts of speed, memory, accuracy and the share of the device's ceiling "
        "from the JSON of "
        "samfast bench and samfast eval, as SVG and PNG files, and write one HTML page of them "
        "all. "
        "Rows of different models, devices, versions or commits stand apart.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS.json",
        help="files that samfast bench or eval wrote with --json",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samfast-report"),
        metavar="DIR",
        help="default: samfast-report/",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Draw; 1 if a file could not be used."""
    from samfast.bench import charts, report_page, results
    from samfast.bench.report_groups import grouped

    charts.require()
    loaded, failed = results.Results(), []
    for path in dict.fromkeys(args.results):
        try:
            loaded += results.read(path)
        except InputError as error:
            failed.append(error)
    if not loaded.rows:
        raise (
            failed[0]
            if failed
            else InputError(
                f"{', '.join(args.results)}: accuracies only, no rows of samfast bench; name a "
                "file that has some"
            )
        )
    for problem in failed:
        console.warn(str(problem))
    make_writable(args.out)
    for path in report_page.write(loaded, args.out):
        console.result(str(path))
    for group in grouped(loaded.rows):
        for row in group.unmeasured():
            console.warn(
                f"{row['recipe']}, batch {row['batch_size']}, {group.title}: {row['status']}"
            )
    return 1 if failed else 0
