"""Sources: which images a folder, glob, list, tar, Parquet file or URL has, and their bytes."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from samfast.cluster.shards import Entry
from samfast.cluster.sources import Source, open_source
from samfast.errors import DatasetError, ImageError, SourceGoneError
from tests.serve.running import picture

PHOTOS = ["0.png", "2.png", "4.png", "6.png", "more/1.png", "more/3.png", "more/5.png"]


def keys(source: Source) -> list[str]:
    return [entry.key for entry in source.entries]


def bytes_of(source: Source) -> list[bytes]:
    return [source.reader.read(entry) for entry in source.entries]


def number_of(key: str) -> int:
    return int(Path(key).stem)


def test_a_folder_has_the_images_below_it_in_order(photos):
    source = open_source(str(photos))
    assert keys(source) == PHOTOS
    assert bytes_of(source) == [(photos / key).read_bytes() for key in PHOTOS]


def test_a_folder_without_its_results(photos):
    results = photos / "results"
    results.mkdir()
    (results / "overlay.png").write_bytes(picture(1))
    assert keys(open_source(str(photos), leave_out=str(results))) == PHOTOS


def test_a_glob_without_the_results_below_it(photos, tmp_path):
    write_parquet(tmp_path / "a.parquet", {"jpg": [picture(1)]})
    results = tmp_path / "out" / "masks"
    results.mkdir(parents=True)
    write_parquet(results / "00000000.parquet", {"image": ["a"]})
    source = open_source(f"{tmp_path}/**/*.parquet", leave_out=str(tmp_path / "out"))
    assert keys(source) == ["a.parquet/0"]


def test_links_to_folders_are_not_followed(photos):
    os.symlink(photos, photos / "more" / "again")
    assert keys(open_source(str(photos))) == PHOTOS


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", PHOTOS[:4]), ("**/*.png", PHOTOS), ("more/[35].png", ["3.png", "5.png"])],
)
def test_a_glob(photos, pattern, expected):
    source = open_source(f"{photos}/{pattern}")
    assert keys(source) == expected
    folder = photos / "more" if expected[0] == "3.png" else photos
    assert bytes_of(source) == [(folder / key).read_bytes() for key in expected]


def test_a_list_names_each_image_once_from_its_own_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    listed = tmp_path / "list.txt"
    listed.write_text(f"photos/more/1.png\n\n{photos}/0.png\nphotos/more/1.png\n")
    source = open_source(str(listed))
    assert keys(source) == ["photos/more/1.png", f"{photos}/0.png"]
    names = ["more/1.png", "0.png"]
    assert bytes_of(source) == [(photos / name).read_bytes() for name in names]
    assert "1 lines repeat" in source.notes[0]


def test_a_missing_image_of_a_list_is_bad_and_one_of_a_folder_has_gone(photos, tmp_path):
    (tmp_path / "list.txt").write_text("photos/none.png\n")
    listed = open_source(str(tmp_path / "list.txt"))
    with pytest.raises(ImageError, match="no such file"):
        listed.reader.read(listed.entries[0])
    source = open_source(str(photos))
    (photos / "0.png").unlink()
    with pytest.raises(SourceGoneError, match=r"0\.png"):
        source.reader.read(source.entries[0])


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            data = picture(number_of(name)) if name.endswith(".png") else b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_tar_files_keep_the_order_of_their_images(tmp_path):
    write_tar(tmp_path / "b.tar", ["9.png", "9.json", "1.png"])
    write_tar(tmp_path / "a.tar", ["x/3.png", "x/3.json"])
    source = open_source(f"{tmp_path}/*.tar")
    assert keys(source) == ["a.tar/x/3.png", "b.tar/9.png", "b.tar/1.png"]
    assert bytes_of(source) == [picture(3), picture(9), picture(1)]
    assert keys(open_source(str(tmp_path))) == keys(source)


def test_a_tar_file_that_was_cut_off(tmp_path):
    write_tar(tmp_path / "a.tar", ["1.png", "2.png"])
    source = open_source(str(tmp_path / "a.tar"))
    os.truncate(tmp_path / "a.tar", source.entries[1].start + 5)
    assert source.reader.read(source.entries[0]) == picture(1)
    with pytest.raises(SourceGoneError, match="ends after"):
        source.reader.read(source.entries[1])


def test_a_compressed_tar_file_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DatasetError, match="not compressed"):
        open_source(str(tmp_path / "a.tar"))


def write_parquet(path: Path, columns: dict, group: int = 2) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=group)


def test_parquet_files_of_bytes_with_keys(tmp_path):
    data = [picture(number) for number in range(5)]
    write_parquet(tmp_path / "a.parquet", {"key": list("vwxyz"), "jpg": data, "label": range(5)})
    source = open_source(str(tmp_path / "a.parquet"))
    assert keys(source) == [f"a.parquet/{key}" for key in "vwxyz"]
    assert bytes_of(source) == data
    assert [source.reader.read(source.entries[i]) for i in (4, 0, 3, 1)] == [
        data[i] for i in (4, 0, 3, 1)
    ]


def test_parquet_files_as_hugging_face_writes_them(tmp_path):
    images = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(3)]
    write_parquet(tmp_path / "train.parquet", {"image": images, "label": [1, 2, 3]})
    source = open_source(str(tmp_path))
    assert keys(source) == [f"train.parquet/{number}.png" for number in range(3)]
    assert bytes_of(source) == [picture(number) for number in range(3)]


def test_parquet_files_without_keys_number_their_rows(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"data": [picture(1), None]})
    source = open_source(str(tmp_path / "a.parquet"))
    assert keys(source) == ["a.parquet/0", "a.parquet/1"]
    with pytest.raises(ImageError, match="row 1 holds no image"):
        source.reader.read(source.entries[1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"label": [1]}, "no column"), ({"a": [b"1"], "b": [b"2"]}, "a, b hold bytes")],
)
def test_parquet_files_without_images_are_refused(tmp_path, columns, message):
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(DatasetError, match=message):
        open_source(str(tmp_path / "a.parquet"))


def test_a_url_of_fsspec(photos, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket", recursive=True) if memory.exists("/bucket") else None
    memory.put(str(photos), "/bucket/photos", recursive=True)
    write_tar(tmp_path / "b.tar", ["9.png", "1.png"])
    memory.put(str(tmp_path / "b.tar"), "/bucket/b.tar")
    source = open_source("memory://bucket/photos")
    assert keys(source) == PHOTOS
    assert bytes_of(source) == [(photos / key).read_bytes() for key in PHOTOS]
    assert keys(open_source("memory://bucket/photos/more/*.png")) == ["1.png", "3.png", "5.png"]
    archive = open_source("memory://bucket/b.tar")
    assert keys(archive) == ["b.tar/9.png", "b.tar/1.png"]
    assert bytes_of(archive) == [picture(9), picture(1)]
    with memory.open("/bucket/list.txt", "w") as file:
        file.write("photos/0.png\nmemory://bucket/photos/2.png\n")
    listed = open_source("memory://bucket/list.txt")
    assert bytes_of(listed) == [(photos / name).read_bytes() for name in ("0.png", "2.png")]
    memory.rm("/bucket/photos", recursive=True)
    with pytest.raises(SourceGoneError):
        source.reader.read(source.entries[0])


@pytest.mark.parametrize("text", ["none", "none/*.jpg", "nowhere://x", "empty", "empty.txt"])
def test_a_source_of_nothing_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DatasetError):
        open_source(text)


def test_the_digest_changes_with_names_and_sizes_and_not_with_the_place(photos, tmp_path):
    digest = open_source(str(photos)).digest
    assert open_source(f"file://{photos}").digest == digest
    moved = photos.rename(tmp_path / "moved")
    assert open_source(str(moved)).digest == digest
    (moved / "0.png").write_bytes(b"other")
    resized = open_source(str(moved)).digest
    (moved / "2.png").rename(moved / "22.png")
    assert len({digest, resized, open_source(str(moved)).digest}) == 3


def test_a_reader_can_be_sent_to_another_process(photos):
    source = open_source(str(photos))
    reader = pickle.loads(pickle.dumps(source.reader))
    assert reader.read(source.entries[0]) == (photos / "0.png").read_bytes()


@pytest.mark.parametrize("listed", [True, False])
def test_an_error_of_a_server_concerns_one_url_of_a_list(photos, monkeypatch, listed):
    from samfast.cluster import sources

    class ServerError(Exception):
        """Such as aiohttp's, which is no OSError."""

    def refuses(place):
        raise ServerError("403 Forbidden")

    monkeypatch.setattr(sources, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(sources, "_whole", refuses)
    reader = sources.Reader("https://host", listed=listed)
    with pytest.raises(SourceGoneError if listed else ImageError, match="403 Forbidden"):
        reader.read(Entry("a.jpg"))


def test_a_folder_or_tar_file_that_may_not_be_read(tmp_path, monkeypatch):
    from samfast.cluster import containers

    def refuses(*arguments):
        raise PermissionError(13, "Permission denied")

    write_tar(tmp_path / "a.tar", ["1.png"])
    monkeypatch.setattr(containers, "tar_entries", refuses)
    with pytest.raises(DatasetError, match="cannot be listed: Permission denied"):
        open_source(str(tmp_path))


def test_a_file_that_fails_again_and_again_ends_the_run(photos, monkeypatch):
    from samfast.cluster import sources

    source = open_source(str(photos))
    failures = []

    def fails(place):
        failures.append(place)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sources, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(sources, "_whole", fails)
    with pytest.raises(SourceGoneError, match="Input/output error"):
        source.reader.read(source.entries[0])
    assert len(failures) == sources.READ_ATTEMPTS
