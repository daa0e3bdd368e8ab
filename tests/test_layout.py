"""The package's layout: names of files, lengths of functions, and what ARCHITECTURE.md lists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samfast"

MAX_FUNCTION_LINES = 60
"""Without the docstring."""

MAX_ARGUMENTS = 15
"""Of a call. More are a missing type."""


def repeated_names(paths: Iterable[PurePath]) -> list[str]:
    """The file names that stand in several folders, relative to the package.

    `__init__.py` and the tree of segment_anything, whose names are the original's, do not count.
    """
    counts = Counter(
        path.name
        for path in paths
        if path.name != "__init__.py" and path.parts[0] != "segment_anything"
    )
    return sorted(name for name, count in counts.items() if count > 1)


def test_no_file_name_stands_twice():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    assert repeated_names(files) == []


def test_a_repeated_name_is_noticed():
    names = ("a/x.py", "b/x.py", "a/__init__.py", "b/__init__.py", "segment_anything/x.py", "y.py")
    assert repeated_names(map(PurePath, names)) == ["x.py"]


def test_architecture_lists_every_folder():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([^`]+/)` \|", text, re.MULTILINE))
    here = {f"samfast/{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    other = {"training/", "tests/", "benchmarks/", "docs/"}
    assert listed == here | other
    assert [name for name in listed if not (ROOT / name).is_dir()] == []


def test_architecture_names_only_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:[\w.]+/)+[\w.]+\.\w+)`", text))
    assert names
    missing = [
        name for name in names if not any((base / name).exists() for base in (ROOT, PACKAGE))
    ]
    assert missing == []


def test_architecture_fits_150_lines():
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 150


def code_lines(function: ast.FunctionDef) -> int:
    """The lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    docstring = ast.get_docstring(function, clean=False)
    return lines - (0 if docstring is None else docstring.count("\n") + 1)


def too_large(source: str, *, kernels: bool = False) -> list[str]:
    """The functions that are too long, and the calls of too many arguments.

    kernels  whether this is a file of kernels, which launch them with as many arguments as they
             need, and whose length is the algorithm's
    """
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not kernels:
            if code_lines(node) > MAX_FUNCTION_LINES:
                problems.append(f"{node.name} has {code_lines(node)} lines")
        elif isinstance(node, ast.Call) and not kernels:
            count = len(node.args) + len(node.keywords)
            if count > MAX_ARGUMENTS:
                problems.append(f"{ast.unparse(node.func)} takes {count} arguments")
    return problems


def test_functions_and_calls_are_small():
    problems = {
        str(path.relative_to(PACKAGE)): large
        for path in PACKAGE.rglob("*.py")
        if (large := too_large(path.read_text(), kernels=path.parent.name == "kernels"))
    }
    assert problems == {}


def test_lines_end_at_100_columns():
    """Also those that end with a pragma, which ruff lets run over."""
    folders = (PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "training")))
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in folders
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []


def test_a_long_function_and_a_long_call_are_noticed():
    long = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
    call = f"f({', '.join('x' * (MAX_ARGUMENTS + 1))})\n"
    assert too_large(long) == ["f has 61 lines"]
    assert too_large(call) == ["f takes 16 arguments"]
    assert too_large(long + call, kernels=True) == []
