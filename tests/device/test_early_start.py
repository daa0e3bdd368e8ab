"""CUDA and Triton start on threads, where there is a GPU that has not started."""

from __future__ import annotations

import threading
from importlib.util import find_spec

import pytest
import torch

from samfast.device import early_start
from samfast.device.early_start import start_early


@pytest.fixture
def cuda(monkeypatch):
    """A GPU as far as `start_early` sees; the devices that were started."""
    started: list[str] = []
    thread = threading.current_thread()

    def zeros(count, device):
        assert threading.current_thread() is not thread
        started.append(device)
        if device == "cuda:7":
            raise RuntimeError("CUDA error: invalid device ordinal")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(torch, "zeros", zeros)
    return started


def join(threads):
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("device", "name"), [(None, "cuda"), ("cuda:1", "cuda:1"), (torch.device("cuda"), "cuda")]
)
def test_it_starts_once_and_on_a_thread(cuda, device, name):
    threads = start_early(device)
    assert threads and not any(thread.daemon for thread in threads)
    join(threads)
    assert cuda == [name]
    assert start_early(device) == [] and cuda == [name]


def test_an_error_is_left_to_the_first_use(cuda):
    join(start_early("cuda:7"))
    assert cuda == ["cuda:7"]


@pytest.mark.parametrize("device", ["cpu", "mps", torch.device("cpu")])
def test_other_devices_start_nothing(cuda, device):
    assert start_early(device) == [] and not cuda


def test_without_a_gpu_nothing_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_early(None) == [] and start_early("cuda") == []


def test_tritons_compiler_is_imported_meanwhile(cuda, monkeypatch):
    pytest.importorskip("triton")
    assert find_spec(early_start.COMPILER) is not None
    imported = []
    monkeypatch.setattr(
        early_start,
        "import_module",
        lambda name: imported.append((name, threading.current_thread())),
    )
    join(start_early("cuda"))
    ((name, thread),) = imported
    assert name == early_start.COMPILER and thread is not threading.current_thread()


def test_libraries_are_loaded_meanwhile(cuda, monkeypatch):
    loaded = []

    def load(device):
        loaded.append((device, threading.current_thread()))
        raise RuntimeError("left to the first use")

    monkeypatch.setattr(early_start, "load_libraries", load)
    join(start_early("cuda:1"))
    ((device, thread),) = loaded
    assert device == torch.device("cuda:1") and thread is not threading.current_thread()


def test_libraries_are_loaded_by_calls_that_torch_takes():
    early_start.load_libraries(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def test_tritons_files_are_hashed_meanwhile(cuda, monkeypatch):
    cache = pytest.importorskip("triton.runtime.cache")
    hashed = []
    monkeypatch.setattr(cache, "triton_key", lambda: hashed.append(threading.current_thread()))
    join(start_early("cuda"))
    assert len(hashed) == 1 and hashed[0] is not threading.current_thread()
