"""Whether a device runs a recipe, decided before anything is tried."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from samfast.device import onednn_products
from samfast.device.machine import UNTESTED
from samfast.device.openvino_compiler import EXTRA, openvino_installed
from samfast.device.triton_support import triton_installed
from samfast.recipes.recipe import Recipe

COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""The C++ compiler of torch.compile on a CPU, unless CXX names one; on other systems g++."""


def refusal(recipe: Recipe, device: torch.device) -> str | None:
    """Why this recipe does not run on that device and what it needs; None if it does run."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "needs an NVIDIA GPU that this PyTorch sees (torch.cuda.is_available() is false)"
        return _on_gpu(recipe, torch.cuda.get_device_capability(device))
    if device.type in UNTESTED:
        return _elsewhere(recipe, device)
    return _on_cpu(recipe)


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX), without emulation."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def _cpu_field(recipe: Recipe) -> str | None:
    """The field of a recipe that is for CPUs whose torch has oneDNN, with its value; None if none
    is. A decoder beside OpenVINO's encoder multiplies by oneDNN too.
    """
    for name in ("attention", "products"):
        value = getattr(recipe, name)
        if value in ("onednn", "openvino"):
            return f"{name}={value!r}"
    return None


def _on_gpu(recipe: Recipe, capability: tuple[int, int]) -> str | None:
    field = _cpu_field(recipe)
    if field is not None:
        return f"{field} is for CPUs; on a GPU take attention='triton' and products='torch'"
    here = f"this GPU's is {capability[0]}.{capability[1]}"
    if recipe.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(
        including_emulation=False
    ):
        return (
            f"bf16 needs a GPU of compute capability 8.0 or more ({here}); take an fp16 or "
            "fp32 recipe"
        )
    for field, value, least in (
        ("attention", "triton", (8, 0)),
        ("quantize", "int8", (8, 0)),
        ("quantize", "fp8", (8, 9)),
        ("sparsify", "2:4", (8, 0)),
    ):
        if getattr(recipe, field) == value and capability < least:
            return (
                f"{field}={value!r} needs a GPU of compute capability {least[0]}.{least[1]} "
                f"or more ({here})"
            )
    needs_triton = {
        "attention='triton'": recipe.attention == "triton",
        f"compile={recipe.compile!r}": recipe.compile is not None,
        "fuse=True": recipe.fuse,
    }
    kernels = [field for field, needed in needs_triton.items() if needed]
    if kernels and not triton_installed():
        return f"{kernels[0]} needs the triton package: pip install triton"
    return None


def _elsewhere(recipe: Recipe, device: torch.device) -> str | None:
    """Devices on which samfast was not tested run what is plain PyTorch."""
    plain = {
        f"attention={recipe.attention!r}": recipe.attention not in ("triton", "blocked", "onednn"),
        f"products={recipe.products!r}": recipe.products == "torch",
        f"compile={recipe.compile!r}": recipe.compile is None,
        "fuse=True": not recipe.fuse,
        "graph=True": not recipe.graph,
        "prompts='nested'": recipe.prompts != "nested",
        f"quantize={recipe.quantize!r}": recipe.quantize is None,
        f"sparsify={recipe.sparsify!r}": recipe.sparsify is None,
    }
    for field, runs in plain.items():
        if not runs:
            return (
                f"{field} runs on an NVIDIA GPU or a CPU; {device.type} takes the plain recipes, "
                "fp32, fp32_sdpa, bf16 or bf16_folded"
            )
    return None


def _on_cpu(recipe: Recipe) -> str | None:
    if recipe.dtype == torch.float16:
        return (
            "fp16 needs a GPU: on a CPU it runs ten times slower than fp32; take a bf16 or "
            "fp32 recipe"
        )
    field = _cpu_field(recipe)
    if recipe.products == "openvino" and not openvino_installed():
        return f"{field} needs the openvino package: {EXTRA}"
    if field is not None and not onednn_products.available():
        return (
            f"{field} needs a torch that was built with oneDNN, and this one was not "
            "(torch.backends.mkldnn.is_available()); take attention='blocked', products='torch'"
        )
    if field is not None and recipe.dtype == torch.bfloat16 and not onednn_products.takes_bf16():
        return (
            f"bf16 with {field} needs a CPU with AVX-512 or AVX-NE-CONVERT; take an fp32 recipe, "
            "or attention='blocked', products='torch'"
        )
    if (
        recipe.products != "torch"
        and recipe.quantize == "int8"
        and not onednn_products.exact_int8()
    ):
        return (
            f"quantize='int8' with {field} needs a CPU with VNNI (AVX512-VNNI or "
            "AVX-VNNI); take a recipe without quantize, or products='torch'"
        )
    if recipe.attention == "triton":
        return (
            "attention='triton' needs an NVIDIA GPU of compute capability 8.0 or more and the "
            "triton package; on a CPU take attention='blocked'"
        )
    if recipe.compile in ("reduce-overhead", "max-autotune"):
        return (
            f"compile={recipe.compile!r} replays a CUDA graph, which needs an NVIDIA GPU; on a CPU "
            "take compile='max-autotune-no-cudagraphs' or 'default'"
        )
    if recipe.graph:
        return "graph=True is a CUDA graph and needs an NVIDIA GPU; on a CPU take graph=False"
    if recipe.quantize == "fp8":
        return (
            "quantize='fp8' needs an NVIDIA GPU of compute capability 8.9 or more; on a CPU "
            "take 'int8'"
        )
    if recipe.sparsify is not None:
        return f"sparsify={recipe.sparsify!r} needs an NVIDIA GPU of compute capability 8.0 or more"
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if recipe.compile is not None and shutil.which(compiler) is None:
        return (
            f"compile={recipe.compile!r} needs a C++ compiler on a CPU, and there is no "
            f"{compiler}; install it, set CXX to another one, or take a recipe without compile"
        )
    return None
