"""The device, the processor and the versions of this machine, which compiled code depends on."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import platform
import subprocess

import torch

from samfast.errors import InputError, UnsupportedRecipeError, shown

UNTESTED = ("mps", "xpu")
"""Devices that run the plain recipes, as PyTorch says; nothing was measured or tested on them."""


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device that a user named, or a GPU if there is one, or else the CPU.

    Raises InputError for a wrong name, UnsupportedRecipeError if PyTorch has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError(f"a {type(device).__name__} is no name of a device")
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {shown(device)}: {reason}; give cpu or cuda") from error
    if resolved.type in UNTESTED:
        return _untested(resolved)
    if resolved.type == "cpu":
        return torch.device("cpu")
    if resolved.type != "cuda":
        raise InputError(f"device {device!r}: samfast runs on cpu, cuda, mps and xpu; give one")
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            reason = f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build"
        else:
            reason = "PyTorch finds no NVIDIA GPU; check nvidia-smi and the driver"
        raise UnsupportedRecipeError(f"device {device!r}: {reason}, or use the device cpu")
    count = torch.cuda.device_count()
    if resolved.index is not None and resolved.index >= count:
        raise InputError(f"device {device!r}: there are only {count} GPUs, counted from 0")
    return resolved


def _untested(device: torch.device) -> torch.device:
    """The device; UnsupportedRecipeError if PyTorch does not have it."""
    module = getattr(torch, device.type, None)
    available = getattr(module, "is_available", lambda: False)()
    count = module.device_count() if module is not None and available else 0
    if (device.index or 0) >= count:
        raise UnsupportedRecipeError(
            f"device {str(device)!r}: PyTorch {torch.__version__} finds {count or 'no'} "
            f"{device.type} devices; use the device cpu"
        )
    return device


def device_name(device: torch.device) -> str:
    """The device in words; compiled code can be shared between devices of the same name."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {instructions}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


INTEL, INTEL_AMX, AMD, OTHER_CPU = "Intel", "Intel with AMX", "AMD", "other"
"""Kinds of processors, between which the order of the recipes differs."""


@functools.cache
def cpu_kind() -> str:
    """The kind of this processor, one of the names above."""
    kind = cpu_kind_of(f"{_cpu_vendor()} {cpu_name()}")
    # Its tiles are what makes bfloat16 fast there. A virtual machine may not have them.
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return INTEL_AMX if kind == INTEL and tiles() else kind


def cpu_kind_of(name: str) -> str:
    """The kind of a processor as far as its name tells: without AMX.

    >>> cpu_kind_of("AMD EPYC")
    'AMD'
    """
    words = name.lower()
    if "intel" in words:
        return INTEL
    return AMD if "amd" in words else OTHER_CPU


def _cpu_vendor() -> str:
    """As "GenuineIntel", or "" where the system does not tell."""
    return _cpuinfo("vendor_id") or platform.processor()


def _cpuinfo(key: str) -> str | None:
    """A field of the first processor; None where there is none (not Linux, or not x86)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


@functools.cache
def driver_version() -> str | None:
    """The NVIDIA driver's version; None if nvidia-smi is missing or fails."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.partition("\n")[0].strip() or None


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of samfast, torch, triton and Python that compiled code depends on."""
    # Imported by name: a stage does not import the package that is built from it.
    package = importlib.import_module(__name__.partition(".")[0])
    return {
        "samfast": package.__version__,
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
