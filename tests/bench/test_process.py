from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from samfast.bench import process, worker
from samfast.bench.job import Job
from samfast.bench.process import WorkerError

JOB = Job("fp32_sdpa", "vit_xs", None, "packaged", "cpu", (1,), "nowhere")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that makes the worker process run a script of ours instead; it has `say` to answer
    with."""

    def become(code):
        package = tmp_path / "stand_in"
        package.mkdir()
        script = package / "worker.py"
        script.write_text(
            "import json, os, sys, time\n"
            "def say(**line):\n"
            "    with open(sys.argv[2], 'a') as file: file.write(json.dumps(line) + '\\n')\n" + code
        )
        run = subprocess.Popen

        def popen(command, **options):
            assert command[1:3] == ["-m", "samfast.bench.worker"]
            return run([command[0], str(script), *command[3:]], **options)

        monkeypatch.setattr(subprocess, "Popen", popen)

    return become


def test_answers_come_as_they_are_made(stand_in):
    stand_in(
        "say(answer={'task': json.load(open(sys.argv[1]))})\n"
        "say(answer={'path': os.environ['PYTHONPATH'], 'x': os.environ['SAMFAST_X']})\n"
    )
    first, second = process.ask(JOB, environment={"SAMFAST_X": "1"})
    assert first["task"]["do"] == "measure"
    assert first["task"]["task"]["recipe"] == "fp32_sdpa"
    assert second["x"] == "1"
    assert os.path.isfile(
        os.path.join(second["path"].split(os.pathsep)[0], "samfast", "__init__.py")
    )


def test_a_worker_that_fails_says_why(stand_in):
    stand_in(
        "say(answer={})\nprint('Traceback', file=sys.stderr)\nsay(error='KeyError: "
        "x')\nsys.exit(1)\n"
    )
    found = process.ask(JOB)
    assert next(found) == {}
    with pytest.raises(WorkerError, match="KeyError: x") as caught:
        next(found)
    assert "Traceback" in caught.value.log


def test_a_worker_that_crashes_leaves_its_last_words(stand_in):
    stand_in("print('Segmentation fault', file=sys.stderr)\nsys.exit(7)\n")
    with pytest.raises(WorkerError, match="exit code 7: Segmentation fault"):
        list(process.ask(JOB))


def test_a_worker_that_takes_too_long_is_ended_with_its_own_processes(stand_in):
    stand_in(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "say(answer={'child': child.pid})\n"
        "time.sleep(60)\n"
    )
    found = process.ask(JOB, timeout=3)
    child = next(found)["child"]
    with pytest.raises(WorkerError, match="not done within its 3 s"):
        next(found)
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(pid):
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_an_interrupted_worker_interrupts(stand_in):
    stand_in("sys.exit(130)\n")
    with pytest.raises(KeyboardInterrupt):
        list(process.ask(JOB))


def test_the_worker_writes_rows_and_errors(tmp_path, monkeypatch, capfd):
    def rows(job):
        assert job == JOB
        yield {"row": 1}
        raise ValueError("no good\nat all")

    monkeypatch.setattr(worker, "measure_rows", rows)
    assert run_worker(tmp_path) == 1
    assert lines(tmp_path) == [{"answer": {"row": 1}}, {"error": "ValueError: no good"}]
    assert "Traceback" in capfd.readouterr().err


def test_the_worker_is_interrupted(tmp_path, monkeypatch):
    def interrupt(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "measure_rows", interrupt)
    assert run_worker(tmp_path) == 130
    assert lines(tmp_path) == []


def test_a_rival_works_in_a_folder_of_the_cache(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "measure_rows", lambda job: seen.append(os.getcwd()) or iter(()))
    assert run_worker(tmp_path, recipe="rival:transformers") == 0
    assert seen == [str(tmp_path / "cache" / "bench")]
    monkeypatch.chdir(tmp_path)
    assert run_worker(tmp_path) == 0
    assert seen[1] == str(tmp_path)


def run_worker(folder, **more):
    task = {**vars(JOB), **more}
    (folder / "task.json").write_text(json.dumps({"do": "measure", "task": task}))
    return worker.main([str(folder / "task.json"), str(folder / "answers.jsonl")])


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_real_worker_says_which_file_is_missing(tmp_path):
    absent = Job(
        "fp32",
        "vit_xs",
        str(tmp_path / "absent.pth"),
        "checkpoint absent.pth",
        "cpu",
        (1,),
        str(tmp_path),
    )
    with pytest.raises(WorkerError, match=r"CheckpointNotFoundError: .*absent\.pth"):
        list(process.ask(absent))
