"""`samfast models`."""

from __future__ import annotations

import json

from samfast import checkpoints
from samfast.cli.models_command import table
from samfast.model.config import CONFIGS


def test_json_on_stdout_is_pure(run):
    code, out, err = run("models", "--json", "-")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(CONFIGS)
    assert rows == checkpoints.listing()


def test_json_into_a_file(run, tmp_path):
    code, out, _ = run("models", "--json", tmp_path / "models.json")
    assert (code, out) == (0, "")
    assert len(json.loads((tmp_path / "models.json").read_text())) == len(CONFIGS)


def test_table_has_every_model_and_its_licence(run):
    code, out, _ = run("models")
    assert code == 0
    for row in checkpoints.listing():
        line = next(line for line in out.splitlines() if line.startswith(row["name"]))
        assert row["licence"] in line


def test_table_is_aligned():
    lines = table(
        [
            {"name": "a", "parameters": 1_500_000, "bytes": 25_000_000, "where": "/x"},
            {"name": "long", "parameters": 600_000_000, "bytes": None, "where": "nowhere"},
        ]
    )
    assert lines == [
        "name  parameters  size   where",
        "a     1.5 M       25 MB  /x",
        "long  600.0 M     -      nowhere",
    ]
    assert table([]) == []
