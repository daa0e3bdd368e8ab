"""`samfast doctor`: this machine, the recipes that it runs, and the one that `auto` picks."""

from __future__ import annotations

import argparse
import os
import platform
from typing import TYPE_CHECKING, Any

import samfast
from samfast.cli.common_options import add_command, add_json_option
from samfast.cli.console import Console, columns
from samfast.user_cache import cache_dir

if TYPE_CHECKING:
    import torch

EXTRAS: dict[str, tuple[str, ...]] = {
    "cluster": ("fsspec", "pyarrow", "ray"),
    "openvino": ("openvino",),
    "report": ("matplotlib",),
    "serve": (
        "fastapi",
        "fsspec",
        "httpcore",
        "httptools",
        "prometheus-client",
        "python-multipart",
        "uvicorn",
    ),
    "large": ("numpy", "pyogrio", "rasterio", "shapely", "tifffile", "zarr"),
}
"""The extras of `pyproject.toml` that samfast uses, and the distributions that each installs."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "doctor",
        run,
        help="show versions, hardware, and the recipes that run on this machine",
        description="Show this machine's versions and hardware, which recipes run on it, which one "
        "auto picks,\nand where files are kept.",
    )
    add_json_option(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Print or write the report; 0."""
    console.report(examine(), describe, args.json)
    return 0


def examine() -> dict[str, Any]:
    """The report, as JSON values."""
    import torch

    from samfast import checkpoints, recipes
    from samfast.device.machine import cpu_name, driver_version, installed_version
    from samfast.recipes import evidence

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refusals = {name: recipes.refusal(recipe, device) for name, recipe in recipes.RECIPES.items()}
    return {
        "samfast": samfast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "numpy": installed_version("numpy"),
        "pillow": installed_version("pillow"),
        "cpu": {"model": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "device": device.type,
        "recipes": [{"name": n, "runs": why is None, "why": why} for n, why in refusals.items()],
        "auto": _auto(device),  # for a checkpoint without measured losses
        "checkpoints": [_checkpoint(each, device) for each in evidence.known_fingerprints()],
        "cache": str(cache_dir()),
        "models": checkpoints.listing(),
        "extras": {
            name: {dist: installed_version(dist) for dist in dists}
            for name, dists in EXTRAS.items()
        },
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    versions = ("samfast", "python", "torch", "triton", "numpy", "pillow")
    lines = [f"{name:<9}{report[name] or 'not installed'}" for name in versions]
    cpu = report["cpu"]
    lines.append(f"{'cpu':<9}{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads")
    lines += [f"{'gpu':<9}{text}" for text in _gpu_texts(report)]
    lines += ["", f"recipes on {report['device']}:"]
    rows = report["recipes"]
    refusals = ("runs" if row["runs"] else f"refused: {row['why']}" for row in rows)
    lines += _indented([row["name"] for row in rows], refusals)
    lines.append(_auto_line(report["auto"]))
    for checkpoint in report["checkpoints"]:
        lines += ["", *_checkpoint_lines(checkpoint)]
    lines += ["", f"checkpoints, cache {report['cache']}:"]
    models = report["models"]
    lines += _indented([row["name"] for row in models], (row["where"] for row in models))
    lines += ["", "extras:"]
    missing = [
        [dist for dist, version in dists.items() if version is None]
        for dists in report["extras"].values()
    ]
    states = (f"missing: pip install {' '.join(each)}" if each else "installed" for each in missing)
    return lines + _indented(list(report["extras"]), states)


def _indented(names: list[str], texts: Any) -> list[str]:
    width = max(map(len, names))
    return [f"  {name:<{width}}  {text}" for name, text in zip(names, texts, strict=True)]


def _auto_line(auto: dict[str, str]) -> str:
    return f"  auto picks {auto['recipe']}: {auto['why']}"


def _gpu_texts(report: dict[str, Any]) -> list[str]:
    if report["gpus"]:
        return [
            f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, compute capability "
            f"{gpu['capability']}, CUDA {report['cuda']}, driver {report['driver'] or 'unknown'}, "
            f"windows by {gpu['window_attention']}"
            for gpu in report["gpus"]
        ]
    if report["cuda"] is None:
        return ["none that this torch could use: it is built without CUDA"]
    return [f"none found (torch is built for CUDA {report['cuda']})"]


def _auto(device: torch.device, **checkpoint: Any) -> dict[str, str]:
    """The recipe that auto picks, and why."""
    from samfast import recipes

    choice = recipes.choose(device, **checkpoint)
    return {"recipe": choice.name, "why": choice.reason}


def _checkpoint(fingerprint: str, device: torch.device) -> dict[str, Any]:
    """The measured losses of a checkpoint, and the recipe that auto picks for it."""
    from samfast.recipes import evidence

    rows = evidence.evidence(fingerprint)
    model = rows[-1].model if rows else None
    fields = ("recipe", "rounding", "kind", "loss_points", "photos", "date", "source")
    return {
        "fingerprint": fingerprint,
        "checkpoint": rows[-1].checkpoint if rows else None,
        "model": model,
        "auto": _auto(device, fingerprint=fingerprint, model=model),
        "rows": [{field: getattr(row, field) for field in fields} for row in rows],
    }


def _checkpoint_lines(checkpoint: dict[str, Any]) -> list[str]:
    name = checkpoint["checkpoint"] or "no valid measurement (run samfast calibrate)"
    lines = [
        f"measured losses of {name}, fingerprint {checkpoint['fingerprint'][:12]}, in points of "
        "mean IoU:"
    ]
    cells = [
        (
            row["recipe"],
            f"{row['loss_points']:.2f}",
            "against annotations" if row["kind"] == "miou" else "against fp32, at most",
            f"{row['photos']} photos",
            row["date"],
            "packaged" if row["source"] == "packaged" else "samfast calibrate",
        )
        for row in checkpoint["rows"]
    ]
    if cells:
        lines += [f"  {line}" for line in columns(cells[0], cells[1:])]
    return [*lines, _auto_line(checkpoint["auto"])]


def _gpu(index: int) -> dict[str, Any]:
    import torch

    from samfast.attention.kernels import hopper_windows

    properties = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    by_cuda = hopper_windows.fits(hopper_windows.WINDOW, 64, torch.bfloat16, device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "window_attention": "CUDA C++" if by_cuda else "Triton",
    }
