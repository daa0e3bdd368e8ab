"""What other processes do during a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from samfast.bench import other_load
from samfast.bench.other_load import OtherLoad, gpu_share

BURN = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell CPU time")
def test_a_process_at_work_is_counted():
    with subprocess.Popen([sys.executable, "-c", BURN]) as other:
        time.sleep(0.5)
        with OtherLoad() as others:
            time.sleep(1.0)
        other.kill()
    assert others.cpus is not None
    assert others.cpus > 0.25  # of a CPU that it may share with other tests


def test_this_process_and_other_cpus_are_not_counted(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    monkeypatch.setattr(other_load, "_STAT", stat)
    monkeypatch.setattr(other_load, "usable_cpus", lambda: {0, 11})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    ours, clock = iter((1.0, 2.5)), iter((10.0, 12.0))
    monkeypatch.setattr(time, "process_time", lambda: next(ours))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def write(first, second):
        lines = ["cpu  9 9 9 9 9 9 9 9 9 9", f"cpu0 {first} 0 0 50 7 0 0 0 0 0"]
        lines += [
            f"cpu1 {first} 900 0 0 0 0 0 0 0 0",
            f"cpu11 0 0 0 0 0 0 0 {second} 0 0",
            "intr 1",
        ]
        stat.write_text("\n".join(lines))

    write(100, 20)
    with OtherLoad() as others:
        write(250, 120)
    # 1.5 s of work on cpu0 and 1 s taken by the host from cpu11, less 1.5 s of ours, in 2 s.
    assert others.cpus == pytest.approx(0.5)


def test_where_nothing_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(other_load, "_STAT", tmp_path / "none")
    with OtherLoad() as others:
        pass
    assert others.cpus is None
    assert gpu_share(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("answer", "share"), [("37 %", 0.37), ("0 %", 0.0), ("[N/A]", None), (OSError(), None)]
)
def test_a_gpus_use_is_asked_of_nvidia_smi(monkeypatch, answer, share):
    asked = []

    def run(command, **options):
        asked.append(command)
        if isinstance(answer, OSError):
            raise answer
        return subprocess.CompletedProcess(command, 0, f"{answer}\n", "")

    class Properties:
        uuid = "8c7e"

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert gpu_share(torch.device("cuda", 1)) == share
    assert "--id=GPU-8c7e" in asked[0]
