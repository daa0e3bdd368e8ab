"""Kernels in CUDA C++ are loaded once each; where one cannot be, Triton's do the work."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch

from samfast.device import cuda_programs
from samfast.device.cuda_programs import CudaProgram, CudaProgramError

GPU = torch.device("cuda", 0)


@pytest.fixture
def program(tmp_path):
    source = tmp_path / "f.cu"
    source.write_text('extern "C" __global__ void f() {}')
    return CudaProgram(source, "f", (("DIM", "64"),), "sm_90a")


@pytest.fixture
def hopper(monkeypatch):
    """A Hopper GPU, as far as `available` sees, without kernels that were loaded before."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_programs, "bindings", object)
    monkeypatch.setattr(cuda_programs, "_loaded", {})
    cuda_programs.available.cache_clear()
    yield
    cuda_programs.available.cache_clear()


def test_the_compilers_options(program):
    assert program.options == [
        *("--gpu-architecture=sm_90a", "--std=c++17", "-default-device", "-DDIM=64")
    ]


@pytest.mark.parametrize(
    "error", [CudaProgramError("the driver says no"), RuntimeError("no library: says no")]
)
def test_a_refused_program_is_logged_once_and_not_available(
    program, hopper, error, monkeypatch, caplog
):
    def refuse(program, device):
        raise error

    monkeypatch.setattr(cuda_programs, "_code", refuse)
    with caplog.at_level(logging.WARNING, "samfast"):
        assert not cuda_programs.available(program, GPU)
        assert not cuda_programs.available(program, GPU)
    (record,) = caplog.records
    assert "says no" in record.getMessage() and "Triton" in record.getMessage()


def test_other_gpus_have_none(program, hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert not cuda_programs.available(program, GPU)


def test_without_the_package_there_is_none(program, hopper, monkeypatch):
    monkeypatch.setattr(cuda_programs, "bindings", lambda: None)
    assert not cuda_programs.available(program, GPU)
    with pytest.raises(CudaProgramError, match="cuda-bindings"):
        cuda_programs.compile_program(program)


def test_who_needs_a_kernel_waits_for_the_thread_that_loads_it(program, hopper, monkeypatch):
    compiled = []

    def compile_slowly(program, device):
        time.sleep(0.2)
        compiled.append(threading.current_thread())
        return b"code"

    monkeypatch.setattr(cuda_programs, "_code", compile_slowly)
    monkeypatch.setattr(cuda_programs, "Kernel", lambda program, code, device: code)
    (thread,) = cuda_programs.load_ahead([program], GPU)
    time.sleep(0.05)
    loaded: object = cuda_programs.load(program, GPU)
    assert loaded == b"code"
    thread.join(10)
    assert compiled == [thread]


def test_it_is_compiled_once_and_then_read(program, hopper, monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings")
    monkeypatch.undo()
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda_programs, "device_name", lambda device: "a card")
    first = cuda_programs._code(program, GPU)
    monkeypatch.setattr(cuda_programs, "compile_program", pytest.fail)
    assert cuda_programs._code(program, GPU) == first and first.startswith(b"\x7fELF")


def test_compiling_changes_no_bytes_that_python_shares(program):
    pytest.importorskip("cuda.bindings")
    cuda_programs.compile_program(program)
    assert [bytes([n])[0] for n in range(256)] == list(range(256))
