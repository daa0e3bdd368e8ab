"""CUDA starts on a thread, where there is a GPU that has not started."""

from __future__ import annotations

import threading

import pytest
import torch

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


@pytest.mark.parametrize(
    ("device", "name"), [(None, "cuda"), ("cuda:1", "cuda:1"), (torch.device("cuda"), "cuda")]
)
def test_it_starts_once_and_on_a_thread(cuda, device, name):
    thread = start_early(device)
    assert thread is not None
    thread.join(10)
    assert cuda == [name]
    assert start_early(device) is None and cuda == [name]


def test_an_error_is_left_to_the_first_use(cuda):
    thread = start_early("cuda:7")
    assert thread is not None
    thread.join(10)
    assert cuda == ["cuda:7"]


@pytest.mark.parametrize("device", ["cpu", "mps", torch.device("cpu")])
def test_other_devices_start_nothing(cuda, device):
    assert start_early(device) is None and not cuda


def test_without_a_gpu_nothing_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_early(None) is None and start_early("cuda") is None
