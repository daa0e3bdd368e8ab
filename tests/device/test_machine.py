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
    ("name", "kind"),
    [
        ("GenuineIntel Intel(R) Xeon(R) Processor", machine.INTEL),
        ("Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", machine.INTEL),
        ("AuthenticAMD AMD EPYC 9654", machine.AMD),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", machine.AMD),
        ("arm", machine.OTHER_CPU),
        ("", machine.OTHER_CPU),
    ],
)
@pytest.mark.parametrize("tiles", [True, False])
def test_kinds_of_processors(monkeypatch: pytest.MonkeyPatch, name, kind, tiles) -> None:
    assert machine.cpu_kind_of(name) == kind
    monkeypatch.setattr(machine, "cpu_name", lambda: name)
    monkeypatch.setattr(machine, "_cpu_vendor", lambda: "")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    with_tiles = kind == machine.INTEL and tiles
    assert machine.cpu_kind.__wrapped__() == (machine.INTEL_AMX if with_tiles else kind)


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
