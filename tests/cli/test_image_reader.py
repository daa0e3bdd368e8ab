"""Files are read ahead of their use: the first ones while the model is loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfast.cli import image_reader
from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import MAX_EARLY, ImageReader
from samfast.errors import ImageError


@pytest.fixture
def files(tmp_path):
    made = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        if number == 1:
            path.write_text("no image")
        else:
            Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(path)
        made.append(ImageFile(Path(path), str(number), path.name, number))
    return made


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in order of their beginning."""
    names: list[str] = []
    read = image_reader.read

    def note(file):
        names.append(file.name)
        return read(file)

    monkeypatch.setattr(image_reader, "read", note)
    return names


def test_the_first_files_are_read_before_they_are_asked_for(files, reads, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    reader = ImageReader(files)
    for thread in threading.enumerate():
        if thread.name.startswith("samfast-read"):
            thread.join(10)
    early = reads[:]
    assert sorted(early) == [file.name for file in files[:MAX_EARLY]]
    first = reader(files[0])
    assert first.image is not None and first.image.pixels.max() == 0
    assert isinstance(reader(files[1]).error, ImageError)
    assert reads == early  # not decoded twice
    assert reader(files[5]).image is not None and reads == [*early, files[5].name]


@pytest.mark.parametrize("beside_gpu", [False, True])
def test_each_file_is_read_once_and_in_order(files, reads, beside_gpu):
    reader = ImageReader(files)
    each = list(reader.each(files, beside_gpu=beside_gpu))
    assert [one.file for one in each] == files
    assert [one.image is None for one in each] == [number == 1 for number in range(12)]
    assert sorted(reads) == sorted(file.name for file in files)


def test_no_files_need_no_thread():
    before = threading.active_count()
    assert list(ImageReader([]).each([], beside_gpu=False)) == []
    assert threading.active_count() == before
