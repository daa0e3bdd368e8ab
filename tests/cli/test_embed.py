"""`samfast embed`: a store that the server answers from, filled ahead."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from samfast.__main__ import main
from samfast.cli import embed_command, segment_scenes
from samfast.scenes import predict_scene
from samfast.serve.messages import ObjectPrompt
from tests.serve.running import picture, started, tiny_engine


def embed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command with the tiny model."""
    monkeypatch.setattr(embed_command, "load_model", lambda args: tiny_engine(batch_size=2))
    monkeypatch.setattr("sys.argv", ["samfast", "embed", *map(str, arguments)])
    return main()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        place = folder / "more" if number % 2 else folder
        (place / f"{number}.png").write_bytes(picture(number))
    (folder / "again.png").write_bytes(picture(0))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_server_answers_from_what_was_embedded_ahead(monkeypatch, capsys, photos, tmp_path):
    store = tmp_path / "store"
    assert embed(monkeypatch, photos, "--store", store) == 0
    assert capsys.readouterr().out.startswith("5 embedded, 1 known already, 0 failed")
    assert embed(monkeypatch, photos, "--store", store) == 0
    assert capsys.readouterr().out.startswith("0 embedded, 6 known already, 0 failed")

    async def click() -> Any:
        sam = tiny_engine()
        async with started(sam, store=str(store)) as service:
            monkeypatch.setattr(sam, "embed", None)  # it is not needed
            click = ObjectPrompt(points=((20, 20),), labels=(1,))
            image_id = hashlib.sha256(picture(3)).hexdigest()
            return await service.predict(image_id, [click])

    assert len(asyncio.run(click())) == 1


def test_bad_images_are_named_and_damaged_embeddings_made_again(
    monkeypatch, capsys, photos, tmp_path
):
    store = tmp_path / "store"
    (photos / "broken.png").write_bytes(picture(9)[:100])
    assert embed(monkeypatch, photos, "--store", store) == 1
    shown = capsys.readouterr()
    assert "broken.png" in shown.err
    assert shown.out.startswith("5 embedded, 1 known already, 1 failed")
    damaged = next(store.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert embed(monkeypatch, photos, "--store", store) == 1
    assert capsys.readouterr().out.startswith("1 embedded, 5 known already, 1 failed")


def test_a_scene_is_embedded_for_prompts_on_the_command_line_and_on_a_server(
    monkeypatch, capsys, tmp_path
):
    scene, store = tmp_path / "scene.png", tmp_path / "store"
    scene.write_bytes(picture(7, 700, 500))
    arguments = (scene, "--tile", 128, "--store", store, "--value-range", "0,200")
    assert embed(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    count = int(said.split()[0])
    assert count > 50 and "windows embedded, 0 known already, 0 without data" in said
    assert embed(monkeypatch, *arguments) == 0
    assert f"0 windows embedded, {count} known already" in capsys.readouterr().out

    class EncodingError(Exception):
        pass

    def load(args: Any) -> Any:
        sam = tiny_engine()

        def refuse(*images: Any) -> None:
            raise EncodingError

        monkeypatch.setattr(sam, "embed", refuse)
        return sam

    monkeypatch.setattr(segment_scenes, "load_model", load)
    # The random model's masks may reach the window's border; then it is asked in another window.
    monkeypatch.setattr(predict_scene, "reaches_border", lambda pixels, valid: False)
    asked = ("segment", scene, "--point", "350,250", "--tile", 128, "--store", store)
    out = ("--out", tmp_path / "out", "--format", "geojson")
    monkeypatch.setattr(
        "sys.argv", ["samfast", *map(str, (*asked, "--value-range", "0,200", *out))]
    )
    assert main() == 0
    assert (tmp_path / "out" / "scene.geojson").exists()
    # Shown otherwise, it is not in the store.
    monkeypatch.setattr("sys.argv", ["samfast", *map(str, (*asked, *out))])
    with pytest.raises(EncodingError):
        main()


def test_wrong_usage(monkeypatch, capsys, tmp_path):
    assert embed(monkeypatch, tmp_path / "none", "--store", tmp_path) == 2
    assert "no such folder" in capsys.readouterr().err
    assert embed(monkeypatch, tmp_path, "--store", tmp_path, "--bands", "1") == 2
    assert "--bands is for scenes (add --tile N)" in capsys.readouterr().err
    assert embed(monkeypatch, tmp_path / "none.tif", "--store", tmp_path, "--tile", 128) == 1
    assert "none.tif" in capsys.readouterr().err
    assert embed(monkeypatch, tmp_path, "--store", tmp_path) == 2
    assert "no images" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(picture(1))
    assert embed(monkeypatch, tmp_path, "--store", "nowhere://x") == 2
    assert "nowhere" in capsys.readouterr().err
