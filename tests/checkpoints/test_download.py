"""Downloads from a server that resumes, drops, ignores ranges, lies and refuses."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import random
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from samfast.checkpoints import download as module
from samfast.checkpoints.download import download
from samfast.checkpoints.verified_files import verify
from samfast.errors import CheckpointError, DownloadError
from tests.checkpoints.server import Behaviour, Server

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """No proxy between the tests and 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.pth"


def part_of(target):
    return target.with_name("weights.pth.part")


def get(server, target, **options):
    options = {"pause": 0.0, "timeout": 5.0, "progress": False, **options}
    download(server.url, target, len(DATA), SHA, **options)


def left(target):
    """What lies in the cache, the lock aside."""
    return sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock"))


def fails(server, target, *words, **options):
    with pytest.raises(DownloadError) as caught:
        get(server, target, **options)
    message = str(caught.value)
    for word in (server.url, str(target), "checkpoint=", *words):
        assert word in message, message
    assert "\n" not in message
    assert not target.exists()
    return message


def test_a_plain_download(target, capsys):
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    assert target.read_bytes() == DATA
    assert left(target) == ["weights.pth", "weights.pth.verified.json"]
    assert server.behaviour.requests == [None]
    assert capsys.readouterr() == ("", "")


def test_info_logging_names_the_address_the_size_and_the_place(target, caplog):
    with Server(Behaviour(DATA)) as server, caplog.at_level("INFO", logger="samfast"):
        get(server, target)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == f"downloading {server.url} ({len(DATA)} bytes) to {target}"


def test_a_closed_stderr_shows_no_bar(target, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Server(Behaviour(DATA)) as server:
        get(server, target, progress=True)
    assert target.read_bytes() == DATA


def test_the_bar_is_on_stderr(target, capsys):
    with Server(Behaviour(DATA)) as server:
        get(server, target, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "weights.pth" in err
    assert "300k/300k" in err


def test_a_file_that_exists_is_not_downloaded(target):
    target.parent.mkdir()
    target.write_bytes(b"present")
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    assert target.read_bytes() == b"present"
    assert server.behaviour.requests == []


def test_a_kept_part_is_resumed(target):
    target.parent.mkdir()
    part_of(target).write_bytes(DATA[:100_000])
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    assert target.read_bytes() == DATA
    assert server.behaviour.requests == ["bytes=100000-"]


def test_dropped_connections_are_resumed(target):
    with Server(Behaviour(DATA, drops=4, drop_after=50_000)) as server:
        get(server, target, attempts=2)  # each attempt brings something, so two in a row never fail
    assert target.read_bytes() == DATA
    assert server.behaviour.requests == [None] + [
        f"bytes={n}-" for n in (50_000, 100_000, 150_000, 200_000)
    ]


def test_dropped_without_a_length(target):
    with Server(Behaviour(DATA, drops=1, drop_after=50_000, length=False)) as server:
        get(server, target)
    assert target.read_bytes() == DATA


def test_a_server_that_ignores_ranges_starts_again(target):
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 100_000)
    with Server(Behaviour(DATA, ranges=False)) as server:
        get(server, target)
    assert target.read_bytes() == DATA


def test_connections_without_data_are_given_up(target):
    with Server(Behaviour(DATA, drops=99, drop_after=0)) as server:
        fails(server, target, "broke", attempts=3)
    assert len(server.behaviour.requests) == 3


def test_bytes_received_before_giving_up_are_kept(target):
    with Server(
        Behaviour(DATA, drops=1, drop_after=70_000, statuses=[200, 503, 503, 503])
    ) as server:
        fails(
            server,
            target,
            "503",
            "70000 of 300000 bytes are kept",
            str(part_of(target)),
            attempts=3,
        )
    assert part_of(target).read_bytes() == DATA[:70_000]


def test_a_busy_server_is_asked_again(target):
    with Server(Behaviour(DATA, statuses=[503, 429, 500])) as server:
        get(server, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_refusal_is_final(target, status):
    with Server(Behaviour(DATA, statuses=[status])) as server:
        fails(server, target, str(status))
    assert len(server.behaviour.requests) == 1
    assert left(target) == []


def test_garbage_of_the_right_size_is_deleted(target):
    garbage = b"x" * len(DATA)
    with Server(Behaviour(garbage)) as server:
        fails(server, target, SHA, hashlib.sha256(garbage).hexdigest(), "deleted")
        assert left(target) == []
        server.behaviour.data = DATA
        get(server, target)
    assert target.read_bytes() == DATA


def test_a_kept_part_of_another_file_is_deleted(target):
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 1000)
    with Server(Behaviour(DATA)) as server:
        fails(server, target, "SHA-256")
    assert left(target) == []


def test_a_page_instead_of_the_file(target):
    with Server(Behaviour(b"<html>log in</html>")) as server:
        fails(server, target, "19 bytes", "300000", "proxy")
    assert left(target) == []


def test_a_longer_file_is_cut_at_the_published_size(target):
    with Server(Behaviour(DATA + b"more", length=False)) as server:
        get(server, target)  # what is beyond the published size is never read
    assert target.read_bytes() == DATA


def test_a_shorter_file_is_no_endless_loop(target):
    with Server(Behaviour(DATA[:1000], length=False)) as server:
        fails(server, target, attempts=3)
    assert not part_of(target).exists()  # the server refuses to go on after it: it was another file


def test_a_part_that_is_too_long_is_started_again(target):
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * (len(DATA) + 5))
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    assert server.behaviour.requests == [None]
    assert target.read_bytes() == DATA


def test_a_whole_part_needs_no_network(target):
    target.parent.mkdir()
    part_of(target).write_bytes(DATA)
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    assert server.behaviour.requests == []
    assert target.read_bytes() == DATA


def test_a_wrong_range_is_refused(target):
    target.parent.mkdir()
    part_of(target).write_bytes(DATA[:1000])
    with Server(Behaviour(DATA, wrong_range=True)) as server:
        fails(server, target, "another part")


def test_a_refused_connection_fails_at_once(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth"
        with pytest.raises(DownloadError) as caught:
            download(url, target, len(DATA), SHA, pause=60.0, timeout=5.0, progress=False)
    assert f"download {url} elsewhere and put the file at {target}" in str(caught.value)


def test_a_failed_name_lookup_fails_at_once(target, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DownloadError, match="name resolution") as caught:
        download("http://samfast.invalid/weights.pth", target, 5, SHA, pause=60.0, progress=False)
    assert str(target) in str(caught.value)


def test_a_full_disk(target, monkeypatch):
    def fail(response, file, remaining, bar):
        raise OSError(errno.ENOSPC, "No space left on device", str(part_of(target)))

    monkeypatch.setattr(module, "_copy", fail)
    with Server(Behaviour(DATA)) as server:
        fails(server, target, "No space left", "300000 bytes", "SAMFAST_CACHE")


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        Server(Behaviour(DATA)) as server,
        pytest.raises(DownloadError, match=r"cannot write .*SAMFAST_CACHE"),
    ):
        get(server, tmp_path / "file" / "weights.pth")


def test_ctrl_c_keeps_the_part_and_frees_the_lock(target, monkeypatch):
    real = module._copy

    def interrupted(response, file, remaining, bar):
        real(response, file, 1000, bar)
        raise KeyboardInterrupt

    with Server(Behaviour(DATA)) as server:
        monkeypatch.setattr(module, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(server, target)
        assert part_of(target).read_bytes() == DATA[:1000]
        monkeypatch.setattr(module, "_copy", real)
        get(server, target)
    assert server.behaviour.requests[1] == "bytes=1000-"
    assert target.read_bytes() == DATA


def _one_of_many(url: str, target: Path) -> None:
    download(url, target, len(DATA), SHA, pause=0.0, progress=False)


def test_of_several_processes_one_downloads(target):
    context = multiprocessing.get_context("spawn")
    with Server(Behaviour(DATA)) as server:
        processes = [
            context.Process(target=_one_of_many, args=(server.url, target)) for _ in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.behaviour.requests == [None]
    assert target.read_bytes() == DATA


def test_a_downloaded_file_is_not_hashed_again(target, monkeypatch):
    with Server(Behaviour(DATA)) as server:
        get(server, target)
    monkeypatch.setattr(
        "samfast.checkpoints.verified_files.file_sha256", lambda path: pytest.fail("hashed again")
    )
    verify(target, len(DATA), SHA)
    with pytest.raises(CheckpointError, match="not the 5"):
        verify(target, 5, SHA)
