"""The package's layout: one name for one file, and a line of ARCHITECTURE.md for each folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samfast"


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
