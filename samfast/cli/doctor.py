"""`samfast doctor`: what this machine has, which recipes it can run, and which one `auto` picks."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from samfast.cli.console import Console, check_json_destination, columns, write_json

if TYPE_CHECKING:
    import torch

EXTRAS: dict[str, tuple[str, ...]] = {
    "quant": ("torchao",),
    "serve": ("fastapi", "uvicorn", "python-multipart"),
    "cluster": ("ray",),
    "geo": ("rasterio",),
    "report": ("matplotlib",),
}
"""The extras that samfast itself can use, and the distributions each one installs
(`pyproject.toml`)."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has and which recipes it can run",
        description="Say what this machine has, which recipes it runs, which auto picks, where "
        "files are.",
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
    """Print or write the report; 0."""
    check_json_destination(args.json)
    report = examine()
    if args.json is not None:
        write_json(report, args.json)
    else:
        for line in describe(report):
            console.result(line)
    return 0


def examine() -> dict[str, Any]:
    """Everything doctor reports, as JSON values."""
    import torch

    import samfast
    from samfast import checkpoints, recipes
    from samfast.device.machine import cpu_name
    from samfast.recipes import evidence

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choice = recipes.choose(device)  # for a checkpoint of which nothing is known
    refusals = {name: recipes.refusal(recipe, device) for name, recipe in recipes.RECIPES.items()}
    return {
        "samfast": samfast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "numpy": installed("numpy"),
        "pillow": installed("pillow"),
        "cpu": {"model": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "device": device.type,
        "recipes": [{"name": n, "runs": why is None, "why": why} for n, why in refusals.items()],
        "auto": {"recipe": choice.name, "why": choice.reason},
        "checkpoints": [_checkpoint(known, device) for known in evidence.known_fingerprints()],
        "cache": str(checkpoints.cache_dir()),
        "models": [dict(row) for row in checkpoints.listing()],
        "extras": {
            name: {dist: installed(dist) for dist in dists} for name, dists in EXTRAS.items()
        },
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report for people, a line each."""
    versions = ("samfast", "python", "torch", "triton", "numpy", "pillow")
    lines = [f"{name:<9}{report[name] or 'not installed'}" for name in versions]
    cpu = report["cpu"]
    lines.append(f"{'cpu':<9}{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads")
    if report["gpus"]:
        for gpu in report["gpus"]:
            lines.append(
                f"{'gpu':<9}{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, compute "
                "capability "
                f"{gpu['capability']}, CUDA {report['cuda']}, driver "
                f"{report['driver'] or 'unknown'}"
            )
    elif report["cuda"] is None:
        lines.append(f"{'gpu':<9}none that this torch could use: it is built without CUDA")
    else:
        lines.append(f"{'gpu':<9}none found (torch is built for CUDA {report['cuda']})")
    lines.append("")
    lines.append(f"recipes on {report['device']}:")
    width = max(len(row["name"]) for row in report["recipes"])
    for row in report["recipes"]:
        lines.append(
            f"  {row['name']:<{width}}  {'runs' if row['runs'] else 'refused: ' + row['why']}"
        )
    lines.append(f"  auto picks {report['auto']['recipe']}: {report['auto']['why']}")
    for known in report["checkpoints"]:
        lines.append("")
        lines += _known(known)
    lines.append("")
    lines.append(f"checkpoints, cache {report['cache']}:")
    width = max(len(row["name"]) for row in report["models"])
    for row in report["models"]:
        lines.append(f"  {row['name']:<{width}}  {row['where']}")
    lines.append("")
    lines.append("extras:")
    for name, dists in report["extras"].items():
        missing = [dist for dist, found in dists.items() if found is None]
        state = f"missing: pip install {' '.join(missing)}" if missing else "installed"
        lines.append(f"  {name:<{max(map(len, report['extras']))}}  {state}")
    return lines


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, found without importing it; None if it is
    absent.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    """The NVIDIA driver's version by nvidia-smi; None if there is no such program or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def _checkpoint(fingerprint: str, device: torch.device) -> dict[str, Any]:
    """What is known of a checkpoint's losses, and what auto picks for it."""
    from samfast import recipes
    from samfast.recipes import evidence

    rows = evidence.evidence(fingerprint)
    model = rows[-1].model if rows else None
    choice = recipes.choose(device, fingerprint=fingerprint, model=model)
    return {
        "fingerprint": fingerprint,
        "checkpoint": rows[-1].checkpoint if rows else None,
        "model": model,
        "auto": {"recipe": choice.name, "why": choice.reason},
        "rows": [
            {
                "recipe": row.recipe,
                "rounding": row.rounding,
                "kind": row.kind,
                "loss_points": row.loss_points,
                "photos": row.photos,
                "date": row.date,
                "source": row.source,
            }
            for row in rows
        ],
    }


def _known(report: dict[str, Any]) -> list[str]:
    """One checkpoint's part of the report for people."""
    name = report["checkpoint"] or "no row that still holds (samfast calibrate)"
    lines = [
        f"measured losses of {name}, fingerprint {report['fingerprint'][:12]}, in points of mean "
        "IoU:"
    ]
    cells = []
    for row in report["rows"]:
        how = "against annotations" if row["kind"] == "miou" else "against fp32, at most"
        where = "packaged" if row["source"] == "packaged" else "samfast calibrate"
        cells.append(
            (
                row["recipe"],
                f"{row['loss_points']:.2f}",
                how,
                f"{row['photos']} photos",
                row["date"],
                where,
            )
        )
    if cells:
        lines += [f"  {line}" for line in columns(cells[0], cells[1:])]
    lines.append(f"  auto picks {report['auto']['recipe']}: {report['auto']['why']}")
    return lines


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }
