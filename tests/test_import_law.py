"""The import law of ARCHITECTURE.md, held by import-linter's contracts in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from importlinter.cli import lint_imports_command; "
        "sys.exit(lint_imports_command())"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "--no-logo",
        "--no-cache",
        "--config",
        "pyproject.toml",
    ]
    environment = dict(os.environ, PYTHONPATH=str(folder))
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_the_law_holds() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("types.py", "import samfast.model.sam"),
        ("images/__init__.py", "import samfast.masks"),
        ("masks/__init__.py", "import samfast.model.config"),
        ("model/config.py", "from samfast.attention import sdpa"),
        ("prompts/__init__.py", "import samfast.engine"),
        ("engine.py", "import samfast.cli"),
        ("images/__init__.py", "import torchvision"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, file: str, line: str) -> None:
    # A law whose test cannot fail is none: each kind of breach, in a copy of the package.
    shutil.copytree(
        ROOT / "samfast",
        tmp_path / "samfast",
        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "samfast" / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 broken" in done.stdout or "2 broken" in done.stdout
