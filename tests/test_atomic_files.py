"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from samfast import atomic_files
from samfast.errors import OutputError, SamfastError
from samfast.outputs import atomic_open, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", b"one")
    atomic_write(str(tmp_path / "b.json"), b"two")
    assert (tmp_path / "a.json").read_bytes() == b"one"
    assert names(tmp_path) == ["a.json", "b.json"]


def test_what_the_system_writes_in_part_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    atomic_write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_the_folder_above_that_which_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    monkeypatch.chdir(tmp_path)
    atomic_write("link/../a", b"there")
    assert names(tmp_path / "disk") == ["a", "folder"]


def test_replaces_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError, MemoryError]
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_exception_passes_and_leaves_no_half_file(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "a"
    if before is not None:
        path.write_bytes(before)

    def write() -> None:
        with atomic_open(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ([] if before is None else ["a"])
    assert before is None or path.read_bytes() == before


def test_ctrl_c_in_the_moment_of_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", b"whole")
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="sends SIGINT")
def test_real_ctrl_c(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import signal, sys, time
        from samfast.atomic_files import atomic_open
        # Where the tests run in the background the signal is ignored from birth.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with atomic_open(sys.argv[1]) as file:
            file.write(b"x" * 100000)
            file.flush()
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert len(names(tmp_path)) == 1
        assert names(tmp_path) != ["a"]
        child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 20
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert child.returncode not in (None, 0)
    assert names(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_the_working_directory_may_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_open("a.txt") as file:
        monkeypatch.chdir(tmp_path / "other")
        file.write(b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert not list((tmp_path / "other").iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"new"
    assert names(tmp_path / "real") == ["a"]


def test_a_device_is_written_to_and_not_replaced() -> None:
    """As with `--json /dev/stdout`; as root, a rename would replace /dev/null itself."""
    if not stat.S_ISCHR(os.stat(os.devnull).st_mode):
        pytest.skip("no device to try")
    atomic_write(os.devnull, b"gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(tmp_path / "pipe", b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_the_longest_name_works(tmp_path: Path) -> None:
    longest = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    atomic_write(tmp_path / longest, b"1")
    assert names(tmp_path) == [longest]


def refused(path: Path) -> str:
    with pytest.raises(OutputError) as caught:
        atomic_write(path, b"data")
    assert isinstance(caught.value, OSError)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written: ")
    assert "\n" not in message
    return message


def test_refusals_name_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert f"there is no folder {tmp_path / 'gone'}; create it" in refused(tmp_path / "gone" / "a")
    assert "is not a folder" in refused(tmp_path / "file" / "a")
    assert "that is a folder; name a file in it" in refused(tmp_path / "folder")
    assert "choose another path" in refused(tmp_path / ("x" * 5000))
    assert names(tmp_path) == ["file", "folder"]


def test_a_nul_in_the_path() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write("a\0b", b"")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "choose another folder"),
        (errno.EACCES, "choose another folder"),
        (errno.EIO, "choose another path"),
    ],
)
@pytest.mark.parametrize("where", ["open", "replace"])
def test_refusals_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, where: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, refuse)
    message = refused(tmp_path / "a")
    assert said in message
    assert os.strerror(number) in message
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "allow writing to" in refused(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


def test_our_own_errors_pass_unchanged(tmp_path: Path) -> None:
    class OwnError(SamfastError, OSError):
        pass

    def write() -> None:
        with atomic_open(tmp_path / "a"):
            raise OwnError("as it is")

    with pytest.raises(OwnError, match="as it is"):
        write()


KILLED = """
import os, signal
from pathlib import Path
from samfast.atomic_files import atomic_open
with atomic_open("a.json") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process lives")
def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, timeout=60, check=False
    )
    (left,) = names(tmp_path)
    assert left.startswith(".samfast-") and left.endswith(".tmp")
    atomic_write(tmp_path / "b.json", b"whole")
    assert names(tmp_path) == ["b.json"]


def test_temporary_files_of_others_stay(tmp_path: Path) -> None:
    machine = atomic_files._machine()
    old = time.time() - 2 * atomic_files.STALE_SECONDS
    stay = [
        f".samfast-{machine}-{os.getpid()}-{'a' * 16}.tmp",  # of a process that lives
        f".samfast-{'0' * 8}-4194305-{'a' * 16}.tmp",  # of another machine
        f".samfast-{'b' * 16}.tmp",  # of an unknown process, written just now
        ".samfast-notes.tmp",
        f"samfast-{'b' * 16}.tmp",
    ]
    stale = [f".samfast-{'c' * 16}.tmp", f".samfast-{'0' * 8}-1-{'d' * 16}.tmp"]
    for name in (*stay, *stale):
        (tmp_path / name).write_bytes(b"half")
    for name in (*stale, ".samfast-notes.tmp", f"samfast-{'b' * 16}.tmp"):
        os.utime(tmp_path / name, (old, old))
    atomic_write(tmp_path / "a", b"whole")
    assert names(tmp_path) == sorted([*stay, "a"])
