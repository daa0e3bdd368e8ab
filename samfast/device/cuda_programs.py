"""Kernels written in CUDA C++: compiled for this GPU by NVRTC, kept in the cache, and launched.

NVRTC and the driver are called by NVIDIA's package `cuda-bindings`, which PyTorch's CUDA builds for
Linux install. Where it is missing, or too old for what is asked of it, nothing here runs, and the
kernels of Triton do the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.device.artifacts import machine_code
from samfast.device.machine import device_name

HOPPER = (9, 0)
"""Compute capability of the GPUs that the programs are written for."""

HEADER = Path(__file__).parent / "kernels" / "hopper.cuh"
"""What kernels share."""

_LOG = logging.getLogger("samfast")


class CudaProgramError(RuntimeError):
    """NVRTC or the driver refused a program; the message is theirs."""


@dataclass(frozen=True)
class CudaProgram:
    """A source of CUDA C++ with one kernel.

    source        the file; it may include HEADER by its name
    kernel        name of the kernel, and of a constant of the program, `shared_bytes`, that has the
                  shared memory which it needs
    definitions   names and values for the preprocessor
    architecture  of the GPU, such as "sm_90a"
    """

    source: Path
    kernel: str
    definitions: tuple[tuple[str, str], ...]
    architecture: str

    @property
    def options(self) -> list[str]:
        """The compiler's."""
        named = [f"-D{name}={value}" for name, value in self.definitions]
        return [f"--gpu-architecture={self.architecture}", "--std=c++17", "-default-device", *named]


@functools.cache
def bindings() -> Any | None:
    """cuda-bindings' modules `driver` and `nvrtc`, or None where they cannot be imported."""
    try:
        import cuda.bindings.driver
        import cuda.bindings.nvrtc
    except Exception as error:  # an import, or a library that the package does not find
        _LOG.info("no CUDA C++ kernels, as cuda-bindings cannot be imported: %s", error)
        return None
    return cuda.bindings


def _needed_bindings() -> Any:
    """The same; raises CudaProgramError where they cannot be imported."""
    both = bindings()
    if both is None:
        raise CudaProgramError("cuda-bindings cannot be imported")
    return both


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the GPU has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def compile_program(program: CudaProgram) -> tuple[bytes, str]:
    """Machine code of a program, and what the compiler said. Needs no GPU.

    Raises CudaProgramError, with the compiler's messages, if it is refused or cannot be compiled.
    """
    nvrtc = _needed_bindings().nvrtc
    text, name = program.source.read_bytes(), program.source.name.encode()
    headers = 1, [HEADER.read_bytes()], [HEADER.name.encode()]
    handle = _checked(nvrtc.nvrtcCreateProgram(text, name, *headers))
    try:
        options = [option.encode() for option in program.options]
        status = nvrtc.nvrtcCompileProgram(handle, len(options), options)[0]
        log = _buffer(_checked(nvrtc.nvrtcGetProgramLogSize(handle)))
        _checked(nvrtc.nvrtcGetProgramLog(handle, log))
        said = log.rstrip(b"\0\n").decode(errors="replace")
        if int(status) != 0:
            raise CudaProgramError(f"{program.source.name} cannot be compiled: {said or status}")
        size = _checked(nvrtc.nvrtcGetCUBINSize(handle))
        code = _buffer(size)
        _checked(nvrtc.nvrtcGetCUBIN(handle, code))
    finally:
        nvrtc.nvrtcDestroyProgram(handle)
    return code[:size], said


def _buffer(size: int) -> bytes:
    """Bytes for NVRTC to write into. Two at least: Python shares those of one character, so that
    writing there would change them everywhere in the process.
    """
    return b"\0" * max(size, 2)


class Kernel:
    """A kernel that is loaded on a GPU. `load` makes it."""

    def __init__(self, program: CudaProgram, code: bytes, device: torch.device) -> None:
        self._driver = _needed_bindings().driver
        self._make_current(device)
        module = _checked(self._driver.cuModuleLoadData(code))
        self._function = _checked(self._driver.cuModuleGetFunction(module, program.kernel.encode()))
        address, size = _checked(self._driver.cuModuleGetGlobal(module, b"shared_bytes"))
        count = ctypes.c_int()
        _checked(self._driver.cuMemcpyDtoH(ctypes.addressof(count), address, size))
        self._shared_bytes = count.value
        attribute = self._driver.CUfunction_attribute
        _checked(
            self._driver.cuFuncSetAttribute(
                self._function,
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self._shared_bytes,
            )
        )

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: list[tuple[Any, Any]],
        device: torch.device,
    ) -> None:
        """Launch on PyTorch's current stream.

        arguments  values with their ctypes types; None for objects of cuda-bindings
        """
        self._make_current(device)
        stream = torch.cuda.current_stream(device).cuda_stream
        values, kinds = zip(*arguments, strict=True)
        _checked(
            self._driver.cuLaunchKernel(
                self._function, *grid, threads, 1, 1, self._shared_bytes, stream, (values, kinds), 0
            )
        )

    def _make_current(self, device: torch.device) -> None:
        """The device's context for this thread, which may not have used CUDA before."""
        with torch.cuda.device(device):
            context = _checked(self._driver.cuCtxGetCurrent())
            if int(context) == 0:
                index = torch.cuda.current_device() if device.index is None else device.index
                owner = _checked(self._driver.cuDeviceGet(index))
                context = _checked(self._driver.cuDevicePrimaryCtxRetain(owner))
                _checked(self._driver.cuCtxSetCurrent(context))


_COPIED_AS = {
    torch.bfloat16: "BFLOAT16",
    torch.float16: "FLOAT16",
    torch.float8_e4m3fn: "UINT8",
}

_loaded: dict[tuple[CudaProgram, torch.device], Kernel] = {}
_locks: defaultdict[tuple[CudaProgram, torch.device], threading.Lock] = defaultdict(threading.Lock)


def load(program: CudaProgram, device: torch.device) -> Kernel:
    """The program's kernel on that GPU: loaded earlier, kept in the cache, or compiled now.

    Raises CudaProgramError if it can be neither.
    """
    key = program, device
    kernel = _loaded.get(key)
    if kernel is None:
        with _locks[key]:  # whoever needs it while it is compiled waits for that
            kernel = _loaded.get(key)
            if kernel is None:
                kernel = _loaded[key] = Kernel(program, _code(program, device), device)
    return kernel


def load_ahead(programs: Iterable[CudaProgram], device: torch.device) -> list[threading.Thread]:
    """Begin to load programs on threads, each on its own; returns the threads."""
    threads = [
        # No daemons: a process that ends meanwhile waits, as torch's threads may abort otherwise.
        threading.Thread(target=available, args=(program, device), name="samfast-start")
        for program in programs
    ]
    for thread in threads:
        thread.start()
    return threads


def tensor_map(tensor: Tensor, box: tuple[int, ...]) -> Any:
    """A `CUtensorMap`: how a Hopper GPU's copy engine brings a box of a tensor to shared memory.

    tensor  of half precision or float8, at most 5 dimensions, of which the last is contiguous;
            beyond its edges are zeros
    box     sides, the last dimension of the tensor first; the bytes of the first side, 32, 64 or
            128, are the width of the swizzle
    """
    driver = _needed_bindings().driver
    kind = _COPIED_AS[tensor.dtype]
    bytes_wide = box[0] * tensor.element_size()
    sizes = tensor.shape[::-1]
    strides = [tensor.element_size() * stride for stride in tensor.stride()[-2::-1]]
    return _checked(
        driver.cuTensorMapEncodeTiled(
            getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kind}"),
            tensor.dim(),
            tensor.data_ptr(),
            [driver.cuuint64_t(size) for size in sizes],
            [driver.cuuint64_t(stride) for stride in strides],
            [driver.cuuint32_t(side) for side in box],
            [driver.cuuint32_t(1)] * tensor.dim(),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{bytes_wide}B"),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )


@functools.cache
def available(program: CudaProgram, device: torch.device) -> bool:
    """Whether a program written for Hopper GPUs can be loaded on this one. That a Hopper GPU cannot
    is logged, once.
    """
    if device.type != "cuda" or bindings() is None:
        return False
    if torch.cuda.get_device_capability(device) != HOPPER:
        return False
    try:
        load(program, device)
    except RuntimeError as error:  # what cuda-bindings raises, too, where it finds no library
        _LOG.warning("a slower kernel of Triton's is used: %s", error)
        return False
    return True


def _code(program: CudaProgram, device: torch.device) -> bytes:
    """The machine code, from the cache or from the compiler."""
    nvrtc = _needed_bindings().nvrtc
    purpose = {
        "device": device_name(device),
        "kernel": program.kernel,
        "options": program.options,
        "source": [_hash_of(file) for file in (program.source, HEADER)],
        "nvrtc": list(_checked(nvrtc.nvrtcVersion())),
    }
    code = machine_code.load(purpose)
    if code is None:
        code, _ = compile_program(program)
        machine_code.save(purpose, code)
    return code


def _hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _checked(result: tuple[Any, ...]) -> Any:
    """A call's results without its status. Raises CudaProgramError if that is an error."""
    status, *rest = result
    if int(status) != 0:
        raise CudaProgramError(str(status))
    return rest[0] if len(rest) == 1 else tuple(rest)
