"""The store of embeddings: whole or absent, checked, bounded, and the tiers above it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from samfast.serve.embedding_cache import EmbeddingCache
from samfast.serve.embedding_store import EmbeddingStore, feature_key
from samfast.serve.messages import ObjectPrompt
from samfast.serve.metrics import Metrics
from samfast.serve.store_backends import Folder, Remote, backend_of
from samfast.types import Embeddings
from tests.serve.running import picture, started, tiny_engine

KEY, OTHER = "a" * 32, "b" * 32
CLICK = ObjectPrompt(points=((40.0, 30.0),), labels=(1,))


def image_id(number: int) -> str:
    return f"{number:064x}"


def embedding(number: int) -> Embeddings:
    features = torch.full((1, 32, 8, 8), float(number)).contiguous(
        memory_format=torch.channels_last
    )
    return Embeddings(features, ((60, 90),), ((85, 128),), "f" * 64)


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"memory://{uuid.uuid4().hex}/embeddings"


def files_of(url: str) -> list[str]:
    return sorted(file.name for file in backend_of(url).files())


def test_what_was_written_is_read_by_this_and_by_a_later_store(url):
    store = EmbeddingStore(backend_of(url), KEY, 1 << 20)
    assert store.read(image_id(1)) is None
    assert store.write(image_id(1), embedding(1))
    for each in (store, EmbeddingStore(backend_of(url), KEY, 1 << 20)):
        assert each.read(image_id(1)) == embedding(1)
        assert image_id(1) in each
        assert len(each) == 1
    assert store.bytes == EmbeddingStore(backend_of(url), KEY, 1 << 20).bytes > 8192


def test_another_recipe_or_model_does_not_see_it(url):
    EmbeddingStore(backend_of(url), KEY, 1 << 20).write(image_id(1), embedding(1))
    other = EmbeddingStore(backend_of(url), OTHER, 1 << 20)
    assert other.read(image_id(1)) is None
    assert len(other) == 1, "its bytes count all the same"


def test_the_bound_holds_and_the_oldest_go_first(url):
    store = EmbeddingStore(backend_of(url), KEY, 5 * 9000)
    for number in range(5):
        store.write(image_id(number), embedding(number))
    assert store.read(image_id(0)) is not None  # used again
    store.write(image_id(5), embedding(5))
    assert store.read(image_id(1)) is None
    assert store.read(image_id(0)) == embedding(0)
    assert store.bytes <= 5 * 9000
    assert len(files_of(url)) == 5
    # A later store with a smaller bound shrinks to it.
    assert EmbeddingStore(backend_of(url), KEY, 2 * 9000).bytes <= 2 * 9000
    assert len(files_of(url)) == 2


def test_use_is_remembered_by_a_later_store_of_a_folder(tmp_path):
    store = EmbeddingStore(Folder(tmp_path), KEY, 1 << 20)
    for number in range(3):
        store.write(image_id(number), embedding(number))
        for path in tmp_path.rglob("*.safetensors"):
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - 100))
    store.read(image_id(0))
    EmbeddingStore(Folder(tmp_path), KEY, 9000)
    assert [Path(each).stem for each in files_of(str(tmp_path))] == [image_id(0)]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_a_miss_and_is_removed(tmp_path, damage):
    store = EmbeddingStore(Folder(tmp_path), KEY, 1 << 20)
    store.write(image_id(1), embedding(1))
    (path,) = tmp_path.rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "flip":
        data[-50] ^= 1
    elif damage == "empty":
        data.clear()
    else:
        data[:] = b"pickle or anything"
    path.write_bytes(data)
    assert store.read(image_id(1)) is None
    assert not path.exists()
    store.write(image_id(1), embedding(1))
    assert store.read(image_id(1)) == embedding(1)


def test_removing_and_files_that_vanish(url):
    store = EmbeddingStore(backend_of(url), KEY, 1 << 20)
    store.write(image_id(1), embedding(1))
    assert store.remove(image_id(1))
    assert not store.remove(image_id(1))
    assert files_of(url) == []
    store.write(image_id(2), embedding(2))
    for name in files_of(url):
        backend_of(url).remove(name)
    assert store.read(image_id(2)) is None
    assert store.bytes == 0


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    foreign = tmp_path / "x" / "y" / "z.safetensors"
    foreign.write_bytes(b"not ours")
    store = EmbeddingStore(Folder(tmp_path), KEY, 9000)
    for number in range(3):
        store.write(image_id(number), embedding(number))
    assert foreign.read_bytes() == b"not ours"
    assert len(store) == 1


def test_a_failing_disk_costs_no_answer(monkeypatch, tmp_path, caplog):
    store = EmbeddingStore(Folder(tmp_path), KEY, 1 << 20)
    store.write(image_id(1), embedding(1))

    def fails(*args: Any) -> Any:
        raise OSError("no space left on the device")

    monkeypatch.setattr(Folder, "read", fails)
    monkeypatch.setattr(Folder, "write", fails)
    assert store.read(image_id(1)) is None
    assert not store.write(image_id(2), embedding(2))
    assert "no space left" in caplog.text


def test_a_remote_that_shows_half_files_gets_them_under_another_name_first(tmp_path):
    # fsspec's own local file system, as one that does not put files whole.
    remote = Remote(f"local://{tmp_path}")
    assert not remote._puts_whole
    written: list[str] = []
    pipe = remote._fs.pipe_file
    remote._fs.pipe_file = lambda path, data: (written.append(path), pipe(path, data))
    store = EmbeddingStore(remote, KEY, 1 << 20)
    store.write(image_id(1), embedding(1))
    assert written[0].endswith(".tmp")
    assert store.read(image_id(1)) == embedding(1)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_memory_is_bounded_and_the_nearest_tier_answers():
    metrics = Metrics(torch.device("cpu"))
    cache = EmbeddingCache(torch.device("cpu"), 20_000, 4_600, None, metrics)
    for number in range(5):
        cache.keep(image_id(number), embedding(number))
    assert [cache.in_memory(image_id(i)) is not None for i in range(5)] == [False] * 2 + [True] * 3
    assert cache.tier_bytes() == {"host": 3 * 8192}
    assert cache.remove(image_id(4))
    assert not cache.remove(image_id(4))
    cache.close()


def test_what_memory_drops_the_store_has(tmp_path):
    metrics = Metrics(torch.device("cpu"))
    store = EmbeddingStore(Folder(tmp_path), KEY, 1 << 20)
    cache = EmbeddingCache(torch.device("cpu"), 8192, 0, store, metrics)
    for number in range(5):
        cache.keep(image_id(number), embedding(number))
    cache.close()
    assert cache.in_memory(image_id(0)) is None
    assert cache.find(image_id(0)) == embedding(0)
    assert cache.in_memory(image_id(0)) == embedding(0)
    text = metrics.text().decode()
    assert 'samfast_embedding_lookups_total{tier="store"} 1.0' in text
    assert 'samfast_embedding_lookups_total{tier="host"} 1.0' in text


def test_a_removed_image_is_not_written_afterwards(tmp_path):
    class Slow(Folder):
        def write(self, name: str, data: bytes) -> None:
            time.sleep(0.1)
            super().write(name, data)

    store = EmbeddingStore(Slow(tmp_path), KEY, 1 << 20)
    cache = EmbeddingCache(torch.device("cpu"), 1 << 20, 0, store, Metrics(torch.device("cpu")))
    for number in range(3):
        cache.keep(image_id(number), embedding(number))
    cache.remove(image_id(2))
    cache.close()
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == [
        image_id(0),
        image_id(1),
    ]


def test_after_a_restart_a_click_needs_neither_the_image_nor_the_encoder(tmp_path, monkeypatch):
    sam = tiny_engine()

    async def work() -> None:
        async with started(sam, store=str(tmp_path)) as service:
            image = await service.add_image(picture(1))
            before = await service.predict(image.id, [CLICK])
        # Drained: what was kept is written.
        again = tiny_engine()
        async with started(again, store=str(tmp_path)) as service:
            monkeypatch.setattr(again, "embed", None)
            assert await service.image(image.id) == image
            after = await service.predict(image.id, [CLICK])
            assert [m.counts for m in after[0].masks] == [m.counts for m in before[0].masks]

    asyncio.run(asyncio.wait_for(work(), 60))


def test_the_key_names_weights_and_recipe():
    from samfast.recipes import RECIPES
    from tests.model.tiny import fast, random_sam

    one = feature_key(tiny_engine())
    assert one == feature_key(tiny_engine())
    assert one != feature_key(fast(random_sam(seed=1), RECIPES["fp32_sdpa"]))
    assert one != feature_key(fast(random_sam(), RECIPES["fp32"]))


WRITER = """
import sys
from pathlib import Path
from samfast.serve.embedding_store import EmbeddingStore
from samfast.serve.store_backends import Folder
from tests.serve.test_embedding_store import KEY, embedding, image_id
store = EmbeddingStore(Folder(Path(sys.argv[1])), KEY, 1 << 30)
for number in range(1_000_000):
    store.write(image_id(number % 1000), embedding(number))
    if number == 5:
        print("writing", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_writer_that_is_killed_leaves_whole_files_only(tmp_path):
    root = Path(__file__).resolve().parents[2]
    for delay in (0.0, 0.013, 0.031):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=str(root)),
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = EmbeddingStore(Folder(tmp_path), KEY, 1 << 30)
        assert len(store) >= 6
        count = len(store)
        for path in list(tmp_path.rglob("*.safetensors")):
            assert store.read(path.stem) is not None
        assert len(store) == count
