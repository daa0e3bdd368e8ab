"""`samfast label`: what it refuses, before any model is loaded."""

from __future__ import annotations

import pytest

from samfast.cli.main import main


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not looked at")
    return tmp_path


def said(arguments, capsys) -> str:
    assert main(["label", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_folder_with_photos_is_needed(photos, capsys):
    assert "no such folder" in said([photos / "nothing"], capsys)
    assert "no such folder" in said([photos / "a.jpg"], capsys)
    (photos / "empty" / "below").mkdir(parents=True)
    (photos / "empty" / "below" / "b.png").touch()
    assert "no photo in this folder (--recursive" in said([photos / "empty"], capsys)


def test_a_damaged_annotations_file_is_said_and_left(photos, capsys):
    path = photos / "annotations.json"
    path.write_text('{"images": [')
    assert "not JSON" in said([photos], capsys)
    assert path.read_text() == '{"images": ['
    other = photos / "other.json"
    other.write_text("[]")
    assert "not a COCO instances file" in said([photos, "--annotations", other], capsys)


def test_annotations_must_have_a_place(photos, capsys):
    missing = photos / "none" / "a.json"
    assert "--annotations" in said([photos, "--annotations", missing], capsys)


def test_other_machines_need_a_token(photos, capsys):
    assert "a token is required" in said([photos, "--host", "0.0.0.0"], capsys)
