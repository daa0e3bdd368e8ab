"""`samfast bench`: speed, memory and accuracy of the recipes on this machine."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from samfast.cli import comparison
from samfast.cli.common_options import (
    add_data_options,
    add_model_options,
    check_data,
    positive_int,
)
from samfast.cli.console import (
    CommandLineError,
    Console,
    check_json_destination,
    columns,
    write_json,
)

COLUMNS = (
    "recipe",
    "batch_size",
    "encoder_images_per_second",
    "images_per_second",
    "spread",
    "peak_memory_bytes",
    "max_relative_error",
    "mask_iou",
    "miou",
    "share_of_ceiling",
    "status",
)


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "bench",
        help="measure the recipes on this machine",
        description="Measure the recipes on this machine, each row in a process of its own; parity "
        "is checked in the same run.",
        allow_abbrev=False,
        conflict_handler="resolve",  # --batch-size takes several here
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="default: every one (samfast doctor lists them); rival:NAME measures another "
        "implementation",
    )
    parser.add_argument(
        "--json", metavar="FILE", help='write the rows as JSON after each of them; "-": on stdout'
    )
    add_model_options(parser)
    parser.add_argument(
        "--batch-size",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="images encoded at once, a row for each N (default: 1, on a GPU 8)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("OLD.json", "NEW.json"),
        help="measure nothing, but say what fell from the first file to the second; exit code 1 if "
        "something did",
    )
    scoring = parser.add_argument_group(
        "accuracy",
        "a data set to score each recipe on, a click a mask; without one there is no miou",
    )
    add_data_options(scoring, option="--data", point_rule="seed")
    _add_measuring_options(parser.add_argument_group("measuring"))
    parser.set_defaults(run=functools.partial(run, parser=parser))


def _add_measuring_options(measuring: Any) -> None:
    measuring.add_argument(
        "--repeats",
        type=positive_int,
        default=5,
        metavar="N",
        help="timed runs, at least (default: 5)",
    )
    measuring.add_argument(
        "--resume",
        metavar="FILE",
        help="keep the finished rows of an earlier --json FILE of the same machine, versions, "
        "settings and commit",
    )
    measuring.add_argument(
        "--rivals-path",
        metavar="DIR",
        help="checkouts of rivals that are not installed (segment-anything-fast)",
    )
    measuring.add_argument(
        "--kernels", action="store_true", help="list the encoder's time by kernel in the JSON"
    )
    measuring.add_argument(
        "--cold", action="store_true", help="give each row empty caches of compiled code"
    )


def run(args: argparse.Namespace, console: Console, *, parser: argparse.ArgumentParser) -> int:
    """Measure; 0. With --compare 1 if something fell."""
    check_json_destination(args.json)
    if args.compare:
        _refuse_others(args, parser)
        old, new = args.compare
        return comparison.run(old, new, args.json, console)
    _check_data(args, parser)
    from samfast.device.machine import resolve_device

    resolve_device(args.device)
    from samfast.bench import ladder
    from samfast.bench.scoring import Scoring
    from samfast.recipes import RECIPES

    options = (args.data, args.images, args.annotations)
    scoring = None
    if any(options):
        scoring = Scoring(*options, args.point_rule, args.min_area, args.limit)
    into_file = args.json is not None and args.json != "-"
    sizes = args.batch_size or [None]
    with console.progress(len(args.recipes or RECIPES) * len(sizes), "row") as advance:

        def on_rows(rows: list[dict[str, Any]], latest: dict[str, Any]) -> None:
            advance(1)
            if not console.has_bar:
                console.warn(told(latest))
            elif latest["doubts"]:
                console.warn(f"{_name(latest)}: doubtful: {'; '.join(latest['doubts'])}")
            if into_file:
                write_json(rows, args.json)

        rows = ladder.run(
            args.recipes,
            model=args.model or "vit_xs",
            checkpoint=args.checkpoint,
            device=args.device,
            batch_size=args.batch_size,
            repeats=args.repeats,
            scoring=scoring,
            rivals_path=args.rivals_path,
            kernels=args.kernels,
            cold=args.cold,
            resume=args.resume or (),
            on_rows=on_rows,
            on_stage=console.stage,
        )
    if args.json is not None:
        write_json(rows, args.json)
    if args.json != "-":
        for line in describe(rows):
            console.result(line)
    return 0


def _refuse_others(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """CommandLineError for an option that --compare would ignore."""
    for name, value in vars(args).items():
        if name not in ("command", "run", "compare", "json") and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            raise CommandLineError(
                f"--compare measures nothing, so {option} has no effect (leave one of them out)"
            )


def _check_data(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """CommandLineError for half a data set, or for options of one where there is none."""
    if check_data(args, "--data DATA", "bench"):
        return
    for name in ("point_rule", "min_area", "limit"):
        if getattr(args, name) != parser.get_default(name):
            raise CommandLineError(
                f"--{name.replace('_', '-')} needs a data set: --data DATA, or --images DIR with "
                "--annotations FILE"
            )


def told(row: dict[str, Any]) -> str:
    """A row in one line."""
    figures = [
        f"{row[key]:.3g} images/s {what}"
        for key, what in (
            ("encoder_images_per_second", "of the encoder"),
            ("images_per_second", "to masks"),
        )
        if row[key] is not None
    ]
    outcome = [row["status"] if row["status"] != "ok" else ", ".join(figures)]
    if row["doubts"]:
        outcome.append(f"doubtful: {'; '.join(row['doubts'])}")
    return f"{_name(row)}: {'; '.join(outcome)}"


def describe(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as aligned columns under a line of headings, a column for each rival that was
    measured too, and a line for each row whose figures are doubtful.
    """
    rivals = list(dict.fromkeys(name for row in rows for name in row.get("ratio_to") or ()))
    headings = [column.replace("_", " ") for column in COLUMNS[:-1]]
    headings += [f"times {name}" for name in rivals] + [COLUMNS[-1]]
    cells = []
    for row in rows:
        ratios = row.get("ratio_to") or {}
        named = {"mask_iou": (row.get("agreement") or {}).get("mask_iou"), **row}
        if row.get("doubts"):
            named["status"] = f"{row['status']}, doubtful"
        if row.get("encoder_images_per_second") is not None and row.get("spread") is None:
            named["spread"] = "one run"
        line = [_cell(column, named.get(column)) for column in COLUMNS]
        cells.append([*line[:-1], *(_cell("ratio", ratios.get(name)) for name in rivals), line[-1]])
    doubtful = [
        f"{_name(row)} is doubtful: {'; '.join(row['doubts'])}" for row in rows if row.get("doubts")
    ]
    return [*columns(headings, cells), *doubtful]


def _name(row: dict[str, Any]) -> str:
    return f"{row['recipe']}, batch {row['batch_size']}"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB"
    if column == "max_relative_error":
        return f"{value:.1e}"
    if column in ("mask_iou", "miou"):
        return f"{value:.4f}"
    if column == "spread" and isinstance(value, float):
        return f"{value:.0%}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
