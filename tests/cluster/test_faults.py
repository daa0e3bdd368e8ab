"""What a run survives: SIGKILL, a full disk, a source that goes, a damaged manifest.

Afterwards the same command goes on, and its files are those of a run without interruption, byte for
byte: nothing is missing, nothing is there twice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samfast.cluster.destination import Destination
from samfast.errors import OutputError
from tests.cluster.conftest import FREE, files
from tests.serve.running import picture

ROOT = Path(__file__).resolve().parents[2]

KILLS = 20

COMMANDS = """
import json, os, random, signal, sys, time
from samfast.cli import run_devices
from samfast.cli.main import main
from tests.serve.running import tiny_engine
run_devices.load_model = lambda args: tiny_engine()
def command(argv):
    # Torch is imported once, and each command is a process of its own, which can be killed.
    child = os.fork()
    if child == 0:
        os._exit(main(argv))
    return child
"""

KILLED = """
argv, whole, out, kills = json.loads(sys.argv[1])
start = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(command([*argv, "--out", whole]), 0)[1]) == 1
seconds = time.monotonic() - start
draw, killed, rounds = random.Random(7), 0, []
while killed < kills:
    place = f"{out}/{len(rounds)}"
    rounds.append(0)
    while True:
        child = command([*argv, "--out", place])
        if killed < kills:
            time.sleep(draw.uniform(0, seconds / 2))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            assert code == 1, code  # there are bad images
            break
        killed += 1
        rounds[-1] += 1
print(json.dumps(rounds))
"""


def python(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    not hasattr(os, "fork"),
    reason="commands are forked, to kill them without importing torch each time",
)
@pytest.mark.parametrize("work", ["--everything", "--embeddings"])
def test_a_driver_killed_at_20_random_moments(tmp_path, work):
    photos, whole, out = tmp_path / "photos", tmp_path / "whole", tmp_path / "out"
    photos.mkdir()
    for number in range(24):
        (photos / f"{number:02}.png").write_bytes(picture(number, 60 + number))
    (photos / "05.png").write_bytes(b"no image")
    for number in (11, 12):
        (photos / f"{number}.jpg").write_bytes(picture(number)[:200])
    argv = ["run", str(photos), "--shard-size", "2", work]
    argv += FREE if work == "--everything" else ()
    rounds = json.loads(python(KILLED, json.dumps([argv, str(whole), str(out), KILLS])))
    assert sum(rounds) == KILLS
    expected = files(whole)
    assert sum("parquet" in name for name in expected) > 12
    for number in range(len(rounds)):
        assert files(out / str(number)) == expected
    assert not list(out.rglob("*.tmp"))


FULL = """
import shutil, subprocess
argv, out, kept = json.loads(sys.argv[1])
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "samfast", out], check=True)
def run():
    code = os.waitstatus_to_exitcode(os.waitpid(command([*argv, "--out", out]), 0)[1])
    return [code, sorted(os.listdir(out + "/masks"))]
mount("size=28k")
codes = [run(), run()]
mount("remount,size=8m")
codes.append(run())
shutil.copytree(out, kept)
print(json.dumps(codes))
"""


def can_mount() -> bool:
    program = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "samfast", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(program, capture_output=True).returncode
    )


def test_a_full_disk(run, photos, tmp_path):
    if not can_mount():
        pytest.skip("a small disk needs a namespace to be mounted in, which this system refuses")
    whole, out, kept = tmp_path / "whole", tmp_path / "out", tmp_path / "kept"
    assert run(photos, whole)[0] == 0
    out.mkdir()
    argv = ["run", str(photos), "--shard-size", "2", "--everything", *FREE]
    program = [sys.executable, "-c", COMMANDS + FULL, json.dumps([argv, str(out), str(kept)])]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", *program],
        capture_output=True,
        text=True,
        timeout=200,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device; free some space" in done.stderr
    assert "the same command goes on from here" in done.stderr
    full, again, freed = json.loads(done.stdout)
    assert (full[0], again[0], freed[0]) == (1, 1, 0)
    assert full[1] == again[1] != freed[1]
    assert not [name for name in full[1] if name.endswith(".tmp")]
    assert files(kept) == files(whole)


@pytest.mark.parametrize("at", range(5))
def test_a_disk_that_refuses_any_write(run, photos, tmp_path, monkeypatch, at):
    """The at-th file of the run cannot be written, be it a shard's or the manifest."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(photos, whole)[0] == 0
    write, written = Destination.write, []

    def refuse(self, name, data):
        written.append(name)
        if len(written) > at:
            raise OutputError(f"{name}: No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Destination, "write", refuse)
    code, _, err = run(photos, out)
    assert (code, len(written) > at) == (1, True)
    assert "No space left on device" in err
    monkeypatch.setattr(Destination, "write", write)
    assert run(photos, out)[0] == 0
    assert files(out) == files(whole)


@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_source_that_vanishes(run, photos, tmp_path, monkeypatch, after):
    from samfast.cluster import sources

    whole, out, away = tmp_path / "whole", tmp_path / "out", tmp_path / "away"
    assert run(photos, whole)[0] == 0
    read = sources._whole
    done: list[str] = []

    def vanishing(place):
        if len(done) == after:
            photos.rename(away)
        done.append(place)
        return read(place)

    monkeypatch.setattr(sources, "_whole", vanishing)
    code, _, err = run(photos, out)
    assert code == 1
    assert "was listed and is gone; put the source back and run again" in err
    assert len(list((out / "masks").glob("*.parquet"))) <= after // 2
    code, _, err = run(photos, out)
    assert code == 2
    assert "no such file or folder" in err
    away.rename(photos)
    assert run(photos, out)[0] == 0
    assert files(out) == files(whole)


def damage_records(content: dict) -> dict:
    return content | {"shards": [[0, 2], ["x"]]}


DAMAGES = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "\0" * len(text),
    "no object": lambda text: "[1, 2]",
    "another format": lambda text: text.replace("samfast-run-1", "samfast-run-9"),
    "no identity": lambda text: json.dumps(json.loads(text) | {"identity": {}}),
    "another weight": lambda text: text.replace('"weights": "', '"weights": "0'),
    "broken records": lambda text: json.dumps(damage_records(json.loads(text))),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_manifest_is_made_again(run, photos, tmp_path, damage, finished):
    whole, out = tmp_path / "whole", tmp_path / "out"
    (photos / "1.png").write_bytes(b"no image")
    assert run(photos, whole)[0] == 1
    shutil.copytree(whole, out)
    if not finished:
        (out / "masks" / "00000001.parquet").unlink()
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(DAMAGES[damage](text))
    (out / "failures.parquet").write_bytes(b"damaged too")
    code, _, err = run(photos, out)
    assert code == 1
    assert "damaged" in err
    assert ("6 images skipped" in err) != finished
    assert files(out) == files(whole)


@pytest.mark.parametrize("listed", [True, False])
def test_a_manifest_that_lists_other_shards_than_there_are(run, photos, tmp_path, listed):
    """As after a power cut: a file that is listed is lost or empty, or one is not yet listed."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(photos, whole)
    shutil.copytree(whole, out)
    if listed:
        (out / "masks" / "00000000.parquet").write_bytes(b"")
        (out / "masks" / "00000003.parquet").unlink()
    else:
        content = json.loads((out / "manifest.json").read_text())
        content["shards"] = content["shards"][1:3]
        (out / "manifest.json").write_text(json.dumps(content))
    code, _, err = run(photos, out)
    assert code == 0
    assert ("3 images in 2 shards" in err) == listed
    assert files(out) == files(whole)


def test_shards_of_another_run_are_not_adopted(run, photos, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    run(photos, one)
    run(photos, other, "--points-per-side", 3, everything=False)
    shutil.copy(other / "masks" / "00000001.parquet", one / "masks" / "00000001.parquet")
    (one / "manifest.json").unlink()
    code, _, err = run(photos, one)
    assert code == 2
    assert "points_per_side was 3 and is 4" in err
