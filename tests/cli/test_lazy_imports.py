"""`--help` and completion answer at once: they import neither torch nor NumPy."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import samfast
from samfast.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]

HELP = """
import contextlib, io, json, sys
from samfast.__main__ import main
sys.argv[:] = ["samfast", *sys.argv[1:], "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = main()
names = ("torch", "numpy", "PIL", "safetensors", "tqdm", "pyarrow", "fsspec", "ray")
heavy = [name for name in names if name in sys.modules]
print(json.dumps([code, len(out.getvalue()) > 100, heavy]))
"""


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_no_torch(command):
    arguments = [command] if command else []
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        check=True,
    )
    assert json.loads(done.stdout) == [0, True, []]


def test_public_names_and_submodules_are_found_at_their_first_use():
    program = """
import sys, samfast
assert "torch" not in sys.modules
for package in (samfast, samfast.outputs):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
assert issubclass(samfast.errors.ImageError, ValueError)
assert callable(samfast.outputs.write_records) and callable(samfast.outputs.brush_rle)
try:
    samfast.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
from samfast import *
assert load is samfast.load
"""
    subprocess.run(
        [sys.executable, "-c", program],
        timeout=120,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        check=True,
    )


def test_the_table_of_names_is_that_of_all():
    assert set(samfast._HOMES) | {"__version__"} == set(samfast.__all__)
    here = {"MaskLike", "atomic_open", "atomic_write", "decode", "encode"}
    assert set(samfast.outputs._HOMES) | here == set(samfast.outputs.__all__)


def test_no_public_name_is_a_module_too():
    # Else what the name means would depend on whether that module was imported.
    for package in (samfast, samfast.outputs):
        modules = {each.name for each in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(package.__all__)


def test_a_command_imports_no_other_one():
    program = """
import sys
from samfast.cli.main import main
assert main(["models", "--json", "no/such/folder"]) == 2
print(*(name for name in sys.modules if name.endswith("_command")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        check=True,
    )
    assert done.stdout.split() == ["samfast.cli.models_command"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's completion")
@pytest.mark.parametrize(
    ("line", "completed"),
    [("samfast seg", {"segment "}), ("samfast segment --pred", {"--pred-iou-thresh "})],
)
def test_a_shell_completes_commands_and_options(tmp_path, line, completed):
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    done = subprocess.run(
        [sys.executable, "-m", "samfast"],
        timeout=60,
        env=dict(
            os.environ,
            PYTHONPATH=str(ROOT),
            _ARGCOMPLETE="1",
            _ARGCOMPLETE_IFS="|",
            _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
            COMP_LINE=line,
            COMP_POINT=str(len(line)),
        ),
        check=False,
    )
    assert done.returncode == 0
    assert set(answer.read_text().split("|")) == completed
