"""`samfast cache`: list or clear what samfast keeps on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from samfast.cli.common_options import add_command, add_json_option
from samfast.cli.console import CommandLineError, Console, columns
from samfast.user_cache import cache_dir


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "cache",
        run,
        help="list or clear compiled code, tuned kernels and downloaded checkpoints",
        description="List what samfast keeps on this machine, or delete it. Compiled code and "
        "tuned\nkernels are made again when needed; checkpoints are downloaded again.\nWhat "
        "samfast calibrate has measured is listed, and never deleted.",
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "clear"), default="list", help="(default: list)"
    )
    parser.add_argument("--yes", action="store_true", help="clear without asking")
    parser.add_argument(
        "--checkpoints", action="store_true", help="also clear downloaded checkpoints"
    )
    add_json_option(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """List or clear; 0, or 1 if the user declined."""
    if args.action == "clear":
        return _clear(args, console)
    if args.yes or args.checkpoints:
        raise CommandLineError("--yes and --checkpoints go with samfast cache clear")
    console.report(examine(), describe, args.json)
    return 0


def examine() -> dict[str, Any]:
    """The cache's entries, checkpoints and measurements, as JSON values."""
    from samfast.checkpoints.verified_files import checkpoint_dir
    from samfast.device import artifacts

    folder = checkpoint_dir()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {
        "folder": str(cache_dir()),
        "entries": [asdict(entry) | {"path": str(entry.path)} for entry in artifacts.entries()],
        "checkpoints": [
            {"path": str(path), "bytes": path.stat().st_size}
            for path in files
            if path.suffix not in (".json", ".tmp", ".lock")
        ],
        "calibrated": _calibrated(),
    }


def _calibrated() -> list[dict[str, Any]]:
    """The files of `samfast calibrate`, with those of their rows that auto uses."""
    from samfast.recipes import evidence

    folder = evidence.calibrated_dir()
    files = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        rows = evidence.calibrated(path.stem)
        files.append(
            {
                "path": str(path),
                "bytes": path.stat().st_size,
                "checkpoint": rows[-1].checkpoint if rows else None,
                "model": rows[-1].model if rows else None,
                "recipes": [row.recipe for row in rows],
                "photos": min((row.photos for row in rows), default=None),
                "date": max((row.date for row in rows), default=None),
            }
        )
    return files


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    lines = [f"cache {report['folder']}", ""]
    if report["entries"]:
        headings = ("what", "model", "recipe", "batch", "device", "size", "date", "file")
        lines += columns(headings, [_row(entry) for entry in report["entries"]])
    else:
        lines.append("nothing compiled or tuned is kept")
    lines.append("")
    if report["checkpoints"]:
        rows = [(_size(each["bytes"]), each["path"]) for each in report["checkpoints"]]
        lines += columns(("size", "downloaded checkpoint"), rows)
    else:
        lines.append("no checkpoint was downloaded")
    lines.append("")
    if report["calibrated"]:
        measured = ("calibrated", "model", "recipes", "photos", "size", "date", "file")
        lines += columns(measured, [_calibrated_row(each) for each in report["calibrated"]])
    else:
        lines.append("no checkpoint was calibrated")
    return lines


def _calibrated_row(file: dict[str, Any]) -> tuple[str, ...]:
    known = ("-" if file[key] is None else str(file[key]) for key in ("checkpoint", "model"))
    recipes = ", ".join(file["recipes"]) or "none of this version"
    photos, date = (str(file[key] or "-") for key in ("photos", "date"))
    return (*known, recipes, photos, _size(file["bytes"]), date, file["path"])


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    purpose = (entry[key] for key in ("model", "recipe", "batch_size", "device"))
    return (
        entry["kind"] + (" (of other versions)" if entry["stale"] else ""),
        *("-" if value is None else str(value) for value in purpose),
        _size(entry["bytes"]),
        entry["date"][:10],
        entry["path"],
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _clear(args: argparse.Namespace, console: Console) -> int:
    from samfast.checkpoints.verified_files import checkpoint_dir
    from samfast.device import artifacts

    report = examine()
    doomed = {"compiled or tuned entries": report["entries"]}
    if args.checkpoints:
        doomed["checkpoints"] = report["checkpoints"]
    summary = " and ".join(
        f"{len(items)} {kind} ({_size(sum(each['bytes'] for each in items))})"
        for kind, items in doomed.items()
    )
    if not args.yes and not _confirmed(f"delete {summary} in {report['folder']}?", console):
        console.warn("nothing was deleted")
        return 1
    freed = artifacts.clear()
    if args.checkpoints:
        freed += artifacts.delete_files(checkpoint_dir())
    cleared = {"folder": report["folder"], "freed_bytes": freed}
    console.report(cleared, lambda _: [f"deleted {summary}"], args.json)
    return 0


def _confirmed(question: str, console: Console) -> bool:
    """Whether the user answers yes; CommandLineError if stdin is not a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise CommandLineError(f"{question} There is no terminal to ask at: add --yes")
    console.warn(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
