"""The wheel, its metadata, and the workflows that build and test it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

import samfast
from samfast.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LICENCES = ("LICENSE", "samfast/checkpoints/weights/LICENSE-vit_xs.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built in a copy without network; a ZipFile."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
    for name in ("samfast", "tests", "training", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", program, str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def read(wheel: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a file in the wheel's .dist-info folder."""
    return wheel.read(f"samfast-{samfast.__version__}.dist-info/{name}")


def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(read(wheel, "METADATA"))


def test_the_wheel_states_both_licences(wheel):
    stated = metadata(wheel)
    assert stated["License-Expression"] == "Apache-2.0 AND CC-BY-NC-4.0"
    assert sorted(stated.get_all("License-File", [])) == sorted(LICENCES)
    for name in LICENCES:
        assert read(wheel, f"licenses/{name}") == (ROOT / name).read_bytes()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = wheel.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "samfast",
        f"samfast-{samfast.__version__}.dist-info",
    }
    data = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "samfast").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert sorted(name for name in names if name.startswith("samfast/")) == sorted(data)
    assert "samfast/checkpoints/weights/vit_xs.safetensors" in names
    assert any(re.fullmatch(r"samfast/recipes/data/.*\.json", name) for name in names)


def test_the_wheel_has_the_command(wheel):
    assert b"[console_scripts]\nsamfast = samfast.__main__:main" in read(wheel, "entry_points.txt")


def test_versions_agree(wheel):
    assert metadata(wheel)["Version"] == samfast.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released[0] == samfast.__version__


def test_doctor_lists_every_extra_of_users(capsys):
    extras = {
        name: [re.split(r"[<>=;\[ ]", need)[0] for need in needs]
        for name, needs in PROJECT["project"]["optional-dependencies"].items()
        if name not in ("demo", "dev")
    }
    assert main(["doctor", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: list(installed) for name, installed in report["extras"].items()} == extras


def test_torch_is_constrained_and_no_build_requirement():
    # Torch as a build requirement would be downloaded again, unconstrained, for every build.
    requires = PROJECT["build-system"]["requires"]
    assert not any(need.startswith("torch") for need in requires)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", constraints, re.MULTILINE)


# ------------------------------------------------------------------------------------------------
# workflows


def workflow(name: str) -> dict[str, Any]:
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(name: str) -> list[str]:
    """The `run:` lines of a workflow."""
    jobs = workflow(name)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", ["lint", "tests", "clients", "wheel"])
def test_workflows_run_targets_of_the_makefile(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    assert commands(name)
    for command in commands(name):
        assert re.fullmatch(r"make [a-z-]+", command), command
        assert command.removeprefix("make ") in targets


def test_workflows_run_what_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = re.findall(r"^make VENV=\S+ (.*)$", script, re.MULTILINE)
    assert set(line.split()) <= {
        command.removeprefix("make ") for name in ("lint", "tests") for command in commands(name)
    }


def test_workflows_test_the_versions_of_python_that_the_metadata_names():
    tested = workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if prefix in c]
    assert tested == named
