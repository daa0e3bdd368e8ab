"""Kept compiled code is verified before torch gets it; a damaged entry is dropped and logged."""

from __future__ import annotations

import codecs
import copyreg
import hashlib
import io
import json
import logging
import os
import pickle
import types
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from samfast.device import artifacts, machine
from samfast.device.artifacts import Key, compile_keys, compiled_code, shared_libraries

with suppress(ImportError):  # Windows has neither
    import grp
    import pwd

KEY = Key("a card", "vit_xs (192 wide)", 1024, "compile=default", 8)
BUNDLE = b"torch's own bytes"


@pytest.fixture(autouse=True)
def cache_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "samfast"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    compiled_code.warn_once.cache_clear()


@pytest.fixture
def torchs(monkeypatch):
    """A stand-in for torch's functions: records the bundles given to it and returns `answer`."""
    fake = types.SimpleNamespace(given=[], answer=object())
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (BUNDLE, None))

    def load(content):
        fake.given.append(content)
        return fake.answer

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    return fake


@pytest.fixture
def entry(torchs, tmp_path):
    """A kept entry, with two libraries in it."""
    library = tmp_path / "torch" / "ab" / "cabx.main.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"machine code")
    path = artifacts.save(KEY, 12.34, started=0.0)
    library.unlink()
    return path


def about(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_what_is_kept_is_handed_to_torch_again(entry, torchs, tmp_path):
    kept = artifacts.load(KEY)
    assert kept == artifacts.CachedCode(entry, 12.3)
    assert torchs.given == [BUNDLE]
    assert (tmp_path / "torch" / "ab" / "cabx.main.so").read_bytes() == b"machine code"


def test_the_description_says_what_it_is_in_words(entry):
    text = about(entry)
    assert text["for"] == {
        "device": "a card",
        "model": "vit_xs (192 wide)",
        "image_size": 1024,
        "recipe": "compile=default",
        "batch_size": 8,
    }
    assert text["versions"] == machine.versions()
    assert text["bytes"] == entry.stat().st_size
    assert text["date"].endswith("+00:00")


@pytest.mark.parametrize("field", ["device", "model", "image_size", "recipe", "batch_size"])
def test_another_key_finds_nothing(entry, torchs, field):
    other = replace(KEY, **{field: 7 if isinstance(getattr(KEY, field), int) else "another"})
    assert artifacts.load(other) is None
    assert entry.exists() and torchs.given == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(**changes):
    def work(path):
        path.with_suffix(".json").write_text(json.dumps(about(path) | changes))

    return work


DAMAGE = {
    "truncated": (truncate, "bytes instead of"),
    "a flipped bit": (flip_a_bit, "SHA-256 is wrong"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes instead of"),
    "no description": (lambda path: path.with_suffix(".json").unlink(), "missing"),
    "no content": (lambda path: path.unlink(), "missing"),
    "no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "description is damaged"),
    "not text": (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "a list": (lambda path: path.with_suffix(".json").write_text("[]"), "format"),
    "fields gone": (
        lambda path: path.with_suffix(".json").write_text('{"format": 1}'),
        "description is damaged",
    ),
    "another format": (edit(format=0), "format"),
    "other versions": (
        edit(versions={"samfast": "0.0.1", "torch": "1.0", "triton": None, "python": "3.11"}),
        "samfast 0.0.1, not",
    ),
    "for another key": (edit(**{"for": {}}), "another key"),
    "seconds no number": (edit(seconds="many"), "description is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_stale_entry_is_dropped_with_one_line(entry, torchs, caplog, kind):
    damage, said = DAMAGE[kind]
    damage(entry)
    with caplog.at_level(logging.WARNING, "samfast"):
        assert artifacts.load(KEY) is None
    assert torchs.given == []
    assert not entry.exists() and not entry.with_suffix(".json").exists()
    (record,) = caplog.records
    assert said in record.getMessage() and str(entry) in record.getMessage()
    assert artifacts.load(KEY) is None  # and nothing more to say
    assert len(caplog.records) == 1


def test_an_entry_that_torch_does_not_take_is_dropped(entry, torchs, caplog):
    torchs.answer = None
    assert artifacts.load(KEY) is None
    assert "torch does not accept it" in caplog.text
    assert not entry.exists()


def test_bytes_of_the_right_hash_that_samfast_did_not_write_are_dropped(entry, torchs, caplog):
    entry.write_bytes(b"anything")
    edit(bytes=8, sha256=hashlib.sha256(b"anything").hexdigest())(entry)
    assert artifacts.load(KEY) is None
    assert "samfast did not write it" in caplog.text
    assert torchs.given == []


@pytest.mark.parametrize("name", ["/etc/x.so", "../x.so", "a/../../x.so", "a/x.py"])
def test_a_library_goes_nowhere_but_into_torch_s_cache(name):
    with pytest.raises(ValueError, match="no path of a library"):
        shared_libraries.restore({name: b""})


def test_only_libraries_made_since_the_start_are_kept(tmp_path):
    folder = tmp_path / "torch" / "ab"
    folder.mkdir(parents=True)
    for name, time in (("old.so", 100), ("new.so", 300), ("new.py", 300)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time, time))
    assert shared_libraries.since(200.0) == {"ab/new.so": b"x"}


def test_an_existing_library_is_kept(tmp_path):
    shared_libraries.restore({"ab/x.so": b"first"})
    shared_libraries.restore({"ab/x.so": b"second"})
    assert (tmp_path / "torch" / "ab" / "x.so").read_bytes() == b"first"


def test_an_unwritable_cache_warns_once(torchs, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert artifacts.save(KEY, 1.0, 0.0) is None
    (record,) = caplog.records
    assert "is not kept" in record.getMessage()


def test_nothing_compiled_is_nothing_kept(torchs, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert artifacts.save(KEY, 1.0, 0.0) is None
    assert not (tmp_path / "samfast").exists()


def test_a_gpu_s_entry_holds_no_libraries(torchs, entry, tmp_path):
    from safetensors.numpy import load_file

    assert set(load_file(entry)) == {"torch", "ab/cabx.main.so"}
    (tmp_path / "torch" / "ab" / "cabx.main.so").write_bytes(b"of something else")
    other = artifacts.save(replace(KEY, device="a card, compute capability 9.0"), 1.0, started=0.0)
    assert set(load_file(other)) == {"torch"}


def dumps():
    """As torch makes keys: a pickle with copyreg's table."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dump([torch.contiguous_format, torch.channels_last])
    return stream.getvalue()


def test_torch_s_keys_do_not_depend_on_the_program(monkeypatch):
    """A module loaded earlier that imports torch changes the pickle, except inside the block."""

    def both():
        plain = dumps()
        with monkeypatch.context() as patch:
            patch.setattr(codecs, "torch", torch, raising=False)
            return plain, dumps()

    before = dict(copyreg.dispatch_table)
    assert len(set(both())) == 2
    with compile_keys.program_independent_keys():
        plain, changed = both()
        assert plain == changed
        assert pickle.loads(plain) == [torch.contiguous_format, torch.channels_last]
        with compile_keys.program_independent_keys():
            pass
        assert torch.memory_format in copyreg.dispatch_table
    assert copyreg.dispatch_table == before


# ---------------------------------------------------------------------- other users of the machine


UNSAFE = {
    "the cache": lambda entry: entry.parent.parent,
    "its folder of code": lambda entry: entry.parent,
    "the code": lambda entry: entry,
    "the description": lambda entry: entry.with_suffix(".json"),
}


@pytest.fixture
def warned(caplog):
    """The warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("which", UNSAFE)
def test_what_everybody_may_write_to_is_not_handed_to_torch(entry, torchs, warned, which):
    unsafe = UNSAFE[which](entry)
    unsafe.chmod(unsafe.stat().st_mode | 0o002)
    for _ in range(2):
        assert artifacts.load(KEY) is None
    assert torchs.given == [] and entry.exists()
    (text,) = warned()
    assert f"others may write to {unsafe}" in text and f"chmod go-w {unsafe}" in text
    unsafe.chmod(unsafe.stat().st_mode & ~0o002)
    assert artifacts.load(KEY) is not None


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_nothing_is_kept_where_everybody_may_write(torchs, warned, tmp_path):
    (tmp_path / "samfast").mkdir()
    (tmp_path / "samfast").chmod(0o777)
    assert artifacts.save(KEY, 1.0, started=0.0) is None
    assert list((tmp_path / "samfast").iterdir()) == []
    assert "neither read nor kept" in warned()[0]


@pytest.mark.skipif(os.name != "posix", reason="owners of POSIX")
@pytest.mark.parametrize("which", UNSAFE)
def test_what_another_user_owns_is_not_handed_to_torch(entry, torchs, warned, monkeypatch, which):
    """Root may own it, this user may, nobody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    unsafe = UNSAFE[which](entry)
    os.chown(unsafe, 12345, -1)
    assert artifacts.load(KEY) is None
    assert torchs.given == []
    assert f"{unsafe} belongs to another user (number 12345)" in warned()[0]


@pytest.mark.skipif(os.name != "posix", reason="groups of POSIX")
@pytest.mark.parametrize(
    ("name", "members", "trusted"),
    [("me", [], True), ("me", ["me"], True), ("me", ["you"], False), ("staff", [], False)],
)
def test_a_group_may_write_if_it_is_of_this_user_alone(
    entry, torchs, monkeypatch, name, members, trusted
):
    monkeypatch.setattr(pwd, "getpwuid", lambda user: types.SimpleNamespace(pw_name="me"))
    group = types.SimpleNamespace(gr_name=name, gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda number: group)
    entry.parent.chmod(0o770)
    assert (artifacts.load(KEY) is not None) == trusted


def test_the_folder_of_code_is_made_for_this_user_alone(entry):
    assert entry.parent.stat().st_mode & 0o077 == 0 or os.name != "posix"
