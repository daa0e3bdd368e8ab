"""`benchmarks/pruned_accuracy.py`: each recipe's own pruned file is scored; failures are rows."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest

from tests.bench.benchmark_scripts import imported


@pytest.fixture
def script():
    with imported("pruned_accuracy") as module:
        yield module


def test_rows(script, tmp_path, monkeypatch):
    calls: list[tuple[str, ...]] = []

    def samfast(*arguments):
        calls.append(arguments)
        options = dict(itertools.pairwise(arguments))
        if arguments[0] == "quantize":
            Path(options["--out"]).write_text(options["--recipe"])
            return subprocess.CompletedProcess(arguments, 0, "pruned 44 layers\nfile\n", "")
        if options["--recipe"] == "int8_2:4":
            return subprocess.CompletedProcess(arguments, 2, "", "a note\nsamfast: refused\n\n")
        weights = options.get("--checkpoint")
        score = {"miou": 0.5, "weights": weights and Path(weights).read_text()}
        result = {"point": score, "box": score}
        Path(options["--json"]).write_text(json.dumps(result))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(script, "samfast", samfast)
    monkeypatch.setenv("SAMFAST_DATA", str(tmp_path))
    file = tmp_path / "rows.json"
    assert script.main(["--json", str(file), "--limit", "3"]) == 1
    rows = {row["recipe"]: row for row in json.loads(file.read_text())}
    assert list(rows) == [*script.RECIPES_SCORED]
    assert rows["nested"]["edt"]["point"]["weights"] is None
    assert rows["2:4"]["seed"]["point"]["weights"] == "2:4"
    assert rows["2:4"]["pruned"] == "pruned 44 layers"
    assert rows["int8_2:4"]["status"] == "failed: samfast: refused"
    rules = [c[c.index("--point-rule") + 1] for c in calls if c[0] == "eval" and "2:4" in c]
    assert rules == ["edt", "seed"]
    # Rows that are done are kept, the failed one is tried again.
    calls.clear()
    assert script.main(["--json", str(file)]) == 1
    assert [call[0] for call in calls] == ["quantize", "eval"]
