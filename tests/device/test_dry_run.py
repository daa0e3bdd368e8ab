"""In a dry run kernels are compiled side by side and not launched; afterwards they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from samfast.device.dry_run import _Opened, _Unlaunched, dry_run

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = '''
import json, sys, threading
import torch
from triton.runtime import driver
from tests.kernels.compiling import Absent
from tests.device import small_kernels
from samfast.device.dry_run import compile_together

driver.set_active(Absent(90))
x = torch.zeros(64)
loaded, launched, report = [], [], {}


def launch(kernel):
    """A launch as Triton makes it; without a GPU it fails where the kernel would be loaded."""
    try:
        kernel[(1,)](x, SIZE=64)
    except Exception as error:  # of the driver, whose class depends on the machine
        launched.append(type(error).__name__)
    else:
        launched.append("left out")


def work():
    launch(small_kernels.double)
    launch(small_kernels.triple)
    launch(small_kernels.double)
    report["during"] = launched[:]
    launched.clear()
    other = threading.Thread(target=launch, args=[small_kernels.double])
    other.start()
    other.join()
    report["other thread"] = launched[:]
    launched.clear()


compile_together(work, lambda kernel: loaded.append((kernel.name, threading.get_ident())))
report["loaded"] = sorted(name for name, _ in loaded)
report["on other threads"] = all(thread != threading.get_ident() for _, thread in loaded)
launch(small_kernels.double)
report["after"] = launched[:]


def broken():
    small_kernels.broken[(1,)](x, SIZE=64)
    report["reached"] = True


for attempt in ("first", "second"):
    try:
        compile_together(broken, lambda kernel: None)
    except Exception as error:  # which one it is, is checked below
        report[attempt] = type(error).__name__
launched.clear()
launch(small_kernels.broken)
report["broken, after"] = launched[:]
print(json.dumps(report))
'''


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={
            **os.environ,
            "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
            "TRITON_INTERPRET": "0",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_launches_are_left_out_and_kernels_compiled_on_other_threads(report):
    assert report["during"] == ["left out"] * 3
    assert report["loaded"] == ["double", "triple"]  # each once
    assert report["on other threads"]


def test_launches_of_other_threads_and_later_ones_are_made(report):
    (other,) = report["other thread"]
    assert other != "left out"
    assert report["after"] != ["left out"]


def test_a_kernel_that_does_not_compile_raises_and_is_never_left_out(report):
    assert report["reached"]
    assert report["first"] == report["second"] == "CompilationError"
    assert report["broken, after"] == ["CompilationError"]


def test_a_stand_in_may_be_asked_for_its_result_as_tritons_before_3_7_do():
    class Compiled:
        function = "loaded"

    class Future:
        def result(self):
            return Compiled()

    opened = _Opened(threading.get_ident())
    kernel = _Unlaunched(Future(), opened)
    assert hasattr(kernel, "result") and kernel.result() is kernel
    assert kernel.run(1, 2) is None and kernel.launch_metadata(1) is None
    assert kernel.function is None
    opened.thread = None
    assert kernel.function == "loaded" and not hasattr(kernel, "result")


def test_without_a_gpu_nothing_is_called():
    called = []
    dry_run(lambda: called.append(1), torch.device("cpu"))
    assert not called
