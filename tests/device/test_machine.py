"""What compiled code depends on is named."""

from __future__ import annotations

import subprocess

import pytest
import torch

from samfast.device import machine
from samfast.device.machine import resolve_device
from samfast.errors import UnsupportedRecipeError


def test_a_device_s_name_says_what_its_compiled_code_depends_on() -> None:
    assert f"{torch.get_num_threads()} threads" in machine.device_name(torch.device("cpu"))


def test_versions() -> None:
    versions = machine.versions()
    assert versions["torch"] == torch.__version__
    assert set(versions) == {"samfast", "torch", "triton", "python"}
    assert machine.installed_version("no-such-distribution") is None


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_without_a_driver_there_is_no_version(monkeypatch: pytest.MonkeyPatch, error) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert machine.driver_version.__wrapped__() is None


@pytest.mark.parametrize("name", ["mps", "xpu", "mps:3", "xpu:1"])
def test_devices_that_pytorch_does_not_have_here(monkeypatch, name):
    monkeypatch.setattr(getattr(torch, name.partition(":")[0]), "is_available", lambda: False)
    with pytest.raises(UnsupportedRecipeError, match=f"finds no {name.partition(':')[0]} devices"):
        resolve_device(name)


def test_untested_devices_that_pytorch_has(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    assert resolve_device("xpu") == torch.device("xpu")
    assert resolve_device("xpu:0") == torch.device("xpu:0")
    with pytest.raises(UnsupportedRecipeError, match="finds 1 xpu devices"):
        resolve_device("xpu:1")
