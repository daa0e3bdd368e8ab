"""What compiled code is tied to: the device, and the versions of what made it."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

import torch


def device_name(device: torch.device) -> str:
    """The device in words; two machines of the same words run the same compiled code."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {instructions}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str | None]:
    """Of samfast, torch, triton (None if it is not installed) and Python."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    # By name: a stage does not import the package that is built from it.
    package = importlib.import_module(__name__.partition(".")[0])
    return {
        "samfast": package.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def cpu_name() -> str:
    """The processor's own name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
