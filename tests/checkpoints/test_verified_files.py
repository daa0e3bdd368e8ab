"""Where the cache is, and verifying the files in it."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from samfast.checkpoints import verified_files
from samfast.checkpoints.verified_files import checkpoint_dir, file_sha256, verify
from samfast.errors import CheckpointError
from samfast.user_cache import cache_dir

DATA = b"weights"
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("SAMFAST_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed, one entry each time."""
    seen = []
    monkeypatch.setattr(
        verified_files, "file_sha256", lambda path: seen.append(path) or file_sha256(path)
    )
    return seen


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", ".cache/samfast"),
        ("darwin", "Library/Caches/samfast"),
        ("win32", "AppData/Local/samfast/cache"),
    ],
)
def test_the_platforms_own_place(monkeypatch, tmp_path, platform, expected):
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_dir() == tmp_path / expected
    assert not cache_dir().exists()  # asking makes nothing


def test_windows_local_app_data(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_dir() == tmp_path / "local" / "samfast" / "cache"


def test_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "samfast"
    assert checkpoint_dir() == tmp_path / "xdg" / "samfast" / "checkpoints"


def test_a_relative_xdg_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "samfast"


def test_samfast_cache_takes_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SAMFAST_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("SAMFAST_CACHE", "here")
    assert cache_dir() == Path.cwd() / "here"


def test_hash(file):
    assert file_sha256(file) == SHA
    with pytest.raises(CheckpointError, match=r"gone\.pth: cannot be read"):
        file_sha256(file.with_name("gone.pth"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        file_sha256(file.parent)


def test_a_file_is_hashed_once(file, hashed):
    for _ in range(3):
        verify(file, len(DATA), SHA)
    assert len(hashed) == 1


def test_a_changed_file_is_hashed_again(file, hashed):
    verify(file, len(DATA), SHA)
    file.write_bytes(b"WEIGHTS")  # of the same size
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match=f"{file}: its SHA-256 is .*delete it"):
        verify(file, len(DATA), SHA)
    assert len(hashed) == 2


def test_another_published_hash_is_checked_again(file, hashed):
    verify(file, len(DATA), SHA)
    with pytest.raises(CheckpointError, match="0" * 64):
        verify(file, len(DATA), "0" * 64)


def test_the_size_is_compared_every_time(file, hashed):
    with pytest.raises(CheckpointError, match=r"a\.pth: has 7 bytes, not the 8.*delete it"):
        verify(file, 8, SHA)
    assert hashed == []


@pytest.mark.parametrize("record", ["", "null", "[", '{"sha256": 5}'])
def test_a_damaged_record_only_costs_time(file, hashed, record):
    file.with_name("a.pth.verified.json").write_text(record)
    verify(file, len(DATA), SHA)
    verify(file, len(DATA), SHA)
    assert len(hashed) == 1


def test_a_cache_that_cannot_be_written_is_still_used(file, hashed, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", deny)
    for _ in range(2):
        verify(file, len(DATA), SHA)
    assert len(hashed) == 2
    assert [path.name for path in file.parent.iterdir()] == ["a.pth"]
