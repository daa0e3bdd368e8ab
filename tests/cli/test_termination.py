"""Ctrl-C, SIGTERM and SIGHUP at any moment: one line, the signal's exit code, whole files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfast.cli import termination

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

AS_MODELS = """
import signal, sys, threading, time
from samfast.__main__ import main
from samfast.cli import models_command
{program}
models_command.run = run
sys.argv[:] = ["samfast", "models"]
sys.exit(main())
"""
"""Runs a program's function `run` as the command `samfast models`."""

WRITING = """
from samfast.atomic_files import atomic_open

def run(args, console):
    with atomic_open("whole.json") as file:
        file.write(b"[]")
    with atomic_open("half.json") as file:
        file.write(b"[")
        file.flush()
        console.result("writing")
        for _ in range(600):  # a signal just before a sleep begins is handled when it ends
            time.sleep(0.1)
"""


NOT_NOW = """
from concurrent.futures import ThreadPoolExecutor

def arrive(frame):
    # Python calls a handler with the frame that the signal interrupts.
    number = signal.{name}
    signal.getsignal(number)(number, frame)
    console.result("not raised")

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "interrupted":
            arrive(sys._getframe(1))

def in_an_import():
    sys.meta_path.insert(0, Finder())
    try:
        import interrupted
    except ModuleNotFoundError:
        pass

def in_an_imported_module():
    with open("imported.py", "w") as file:
        file.write("import __main__, sys; __main__.arrive(sys._getframe())")
    sys.path.insert(0, ".")
    import imported

def in_a_start():
    start = threading.Event.wait

    def wait(event, timeout=None):
        threading.Event.wait = start
        arrive(sys._getframe())
        return start(event, timeout)

    executor = ThreadPoolExecutor(1)
    threading.Event.wait = wait  # in which a new thread is waited for
    executor.submit(int)

def run(args, given):
    global console
    console = given
    {where}()
    for _ in range(600):  # a signal just before a sleep begins is handled when it ends
        time.sleep(0.1)
"""

TURNED_INTO_AN_ERROR = """
from samfast.errors import SamfastError

def run(args, console):
    try:
        signal.raise_signal(signal.{name})
    except KeyboardInterrupt:
        raise {error}("initialization failed")  # as pybind11 does
"""


def start_models(folder: Path, program: str, **options) -> subprocess.Popen[bytes]:
    return start(folder, "-c", AS_MODELS.replace("{program}", program), **options)


def start(folder: Path, *command: str, **options) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, b"interrupted"),
        (signal.SIGTERM, b"terminated"),
        (signal.SIGHUP, b"terminated"),
    ],
)
def test_a_signal_leaves_whole_files_and_no_others(tmp_path, number, said):
    process = start_models(tmp_path, WRITING)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)  # a closing terminal sends several
    try:
        _, err = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err == b"samfast: " + said + b"; files already written are intact\n"
    assert os.listdir(tmp_path) == ["whole.json"]


NUMBERS = pytest.mark.parametrize(
    ("name", "said"), [("SIGINT", b"interrupted"), ("SIGTERM", b"terminated")]
)


@NUMBERS
@pytest.mark.parametrize("where", ["in_an_import", "in_an_imported_module", "in_a_start"])
def test_a_signal_that_cannot_be_raised_yet_is_raised_later(tmp_path, name, said, where):
    process = start_models(tmp_path, NOT_NOW.replace("{name}", name).replace("{where}", where))
    out, err = process.communicate(timeout=50)
    assert process.returncode == 128 + getattr(signal, name)
    assert out.startswith(b"not raised\n")
    assert err == b"samfast: " + said + b"; files already written are intact\n"


def test_a_command_that_an_import_runs_is_interrupted_at_once(tmp_path):
    program = "def run(args, console):\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(60)"
    (tmp_path / "program.py").write_text(AS_MODELS.replace("{program}", program))
    process = start(tmp_path, "-c", "import program")
    _, err = process.communicate(timeout=termination.IMPORT_SECONDS - 1)
    assert process.returncode == 130
    assert err == b"samfast: interrupted; files already written are intact\n"


HANGING = """
from samfast.cli import termination
termination.IMPORT_SECONDS = 0.2
sys.path.insert(0, ".")

def run(args, console):
    import hanging
"""


def test_an_import_that_hangs_is_interrupted_in_the_end(tmp_path):
    hanging = "import time\nprint('importing', flush=True)\nfor _ in range(600): time.sleep(0.1)"
    (tmp_path / "hanging.py").write_text(hanging)
    process = start_models(tmp_path, HANGING)
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == b"samfast: interrupted; files already written are intact\n"


@NUMBERS
@pytest.mark.parametrize("error", ["ImportError", "SamfastError"])
def test_a_signal_that_became_an_error_is_still_a_signal(tmp_path, name, said, error):
    program = TURNED_INTO_AN_ERROR.replace("{name}", name).replace("{error}", error)
    process = start_models(tmp_path, program)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 128 + getattr(signal, name)
    assert err == b"samfast: " + said + b"; files already written are intact\n"


def test_nohup_goes_on(tmp_path):
    program = WRITING.replace(
        "            time.sleep(0.1)\n", "            time.sleep(0.1)\n    return 0\n"
    )

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start_models(
        tmp_path,
        program.replace("range(600)", "range(5)"),
        preexec_fn=ignore,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert sorted(os.listdir(tmp_path)) == ["half.json", "whole.json"]


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_ctrl_c_while_torch_is_imported_prints_no_traceback(tmp_path, seconds):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    process = start(tmp_path, "-m", "samfast", "segment", "a.png", "--point", "4,4")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT, 0), err
    assert b"Traceback" not in err, err
