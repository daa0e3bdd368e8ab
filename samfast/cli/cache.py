"""`samfast cache`: what samfast keeps on this machine, and getting rid of it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from samfast.cli.console import (
    CommandLineError,
    Console,
    check_json_destination,
    columns,
    write_json,
)


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "cache",
        help="list or clear what was compiled, tuned, sampled and downloaded",
        description="List what samfast keeps on this machine, or clear what it can make again. "
        "Compiled code, "
        "tuned kernels and the points of data sets are made again when they are needed; "
        "checkpoints are downloaded "
        "again.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "clear"), default="list", help="default: list"
    )
    parser.add_argument("--yes", action="store_true", help="clear: do not ask")
    parser.add_argument(
        "--checkpoints", action="store_true", help="clear: downloaded checkpoints too"
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
    """List or clear; 0, or 1 if the user declined."""
    check_json_destination(args.json)
    if args.action == "clear":
        return _clear(args, console)
    if args.yes or args.checkpoints:
        raise CommandLineError("--yes and --checkpoints go with samfast cache clear")
    report = examine()
    if args.json is not None:
        write_json(report, args.json)
    else:
        for line in describe(report):
            console.result(line)
    return 0


def examine() -> dict[str, Any]:
    """What there is, as JSON values."""
    from samfast.checkpoints.verified_files import checkpoint_dir
    from samfast.device import artifacts
    from samfast.user_cache import cache_dir

    folder = checkpoint_dir()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    notes = (".json", ".tmp", ".lock")
    return {
        "folder": str(cache_dir()),
        "entries": [asdict(entry) | {"path": str(entry.path)} for entry in artifacts.entries()],
        "checkpoints": [
            {"path": str(path), "bytes": path.stat().st_size}
            for path in files
            if path.suffix not in notes
        ],
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report for people, a line each."""
    lines = [f"cache {report['folder']}", ""]
    if report["entries"]:
        headings = ("what", "model", "recipe", "batch", "device", "size", "date", "file")
        lines += columns(headings, [_row(entry) for entry in report["entries"]])
    else:
        lines.append("nothing compiled, tuned or sampled is kept")
    lines.append("")
    if report["checkpoints"]:
        rows = [(_size(each["bytes"]), each["path"]) for each in report["checkpoints"]]
        lines += columns(("size", "downloaded checkpoint"), rows)
    else:
        lines.append("no checkpoint was downloaded")
    return lines


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["kind"] + (" (of other versions)" if entry["stale"] else ""),
        *(
            "-" if entry[key] is None else str(entry[key])
            for key in ("model", "recipe", "batch_size", "device")
        ),
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
    doomed = [(len(report["entries"]), "compiled, tuned or sampled entries", report["entries"])]
    if args.checkpoints:
        doomed.append((len(report["checkpoints"]), "checkpoints", report["checkpoints"]))
    words = " and ".join(
        f"{count} {what} ({_size(sum(each['bytes'] for each in those))})"
        for count, what, those in doomed
    )
    if not args.yes and not _agreed(f"delete {words} in {report['folder']}?", console):
        console.warn("nothing was deleted")
        return 1
    freed = artifacts.clear()
    if args.checkpoints:
        freed += artifacts.delete_files(checkpoint_dir())
    if args.json is not None:
        write_json({"folder": report["folder"], "freed_bytes": freed}, args.json)
    else:
        console.result(f"deleted {words}")
    return 0


def _agreed(question: str, console: Console) -> bool:
    """Whether the user at the terminal says yes; CommandLineError if there is none to ask."""
    if not sys.stdin.isatty():
        raise CommandLineError(f"{question} There is no terminal to ask at: add --yes")
    console.warn(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
