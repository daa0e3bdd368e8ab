from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, replace

import pytest

from samfast.bench import worker
from samfast.bench.bench_job import Job
from samfast.bench.worker import WorkerError

JOB = Job(
    recipe="fp32_sdpa",
    batch_size=1,
    model="vit_xs",
    checkpoint=None,
    weights="packaged",
    device="cpu",
    folder="nowhere",
    names=("fp32_sdpa",),
    batch_sizes=(1,),
)


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
            "    with open(sys.argv[2], 'w') as file: json.dump(line, file)\n" + code
        )
        run = subprocess.Popen

        def popen(command, **options):
            assert command[1:3] == ["-m", "samfast.bench.worker"]
            return run([command[0], str(script), *command[3:]], **options)

        monkeypatch.setattr(subprocess, "Popen", popen)

    return become


def test_the_answer_and_the_environment(stand_in):
    stand_in(
        "task = json.load(open(sys.argv[1]))\n"
        "path, x = os.environ['PYTHONPATH'], os.environ['SAMFAST_X']\n"
        "say(answer={'task': task, 'path': path, 'x': x})\n"
    )
    answer = worker.run_task("measure", JOB, environment={"SAMFAST_X": "1"})
    assert answer["task"]["do"] == "measure"
    assert answer["task"]["job"]["recipe"] == "fp32_sdpa"
    assert answer["x"] == "1"
    root = answer["path"].split(os.pathsep)[0]
    assert os.path.isfile(os.path.join(root, "samfast", "__init__.py"))


def test_stages_are_handed_on_as_they_begin(stand_in):
    stand_in(
        "for stage in ('loading', 'encoder'):\n"
        "    with open(sys.argv[3], 'w') as file: file.write(stage)\n"
        "    time.sleep(1.5)\n"
        "say(answer={})\n"
    )
    seen: list[str] = []
    assert worker.run_task("measure", JOB, on_stage=seen.append) == {}
    assert seen == ["loading", "encoder"]


def test_a_worker_that_fails_says_why(stand_in):
    stand_in("print('Traceback', file=sys.stderr)\nsay(error='KeyError: x')\nsys.exit(1)\n")
    with pytest.raises(WorkerError, match="KeyError: x") as caught:
        worker.run_task("measure", JOB)
    assert "Traceback" in caught.value.log


def test_a_worker_that_crashes_leaves_its_last_words(stand_in):
    stand_in("print('Segmentation fault', file=sys.stderr)\nsys.exit(7)\n")
    with pytest.raises(WorkerError, match="exit code 7: Segmentation fault"):
        worker.run_task("measure", JOB)


def test_what_a_worker_started_is_ended_with_it(stand_in, tmp_path):
    stand_in(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "say(answer={})\n"
    )
    assert worker.run_task("measure", JOB) == {}
    child = int((tmp_path / "pid").read_text())
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
        worker.run_task("measure", JOB)


def test_the_worker_writes_an_answer_or_an_error(tmp_path, monkeypatch, capfd):
    def row(job, on_stage):
        assert job == JOB
        on_stage("encoder")
        return {"row": 1}

    def fail(job, on_stage):
        raise ValueError("no good\nat all")

    monkeypatch.setattr(worker, "measure_row", row)
    assert run_worker(tmp_path) == 0
    assert answer(tmp_path) == {"answer": {"row": 1}}
    assert (tmp_path / "stage").read_text() == "encoder"
    monkeypatch.setattr(worker, "measure_row", fail)
    assert run_worker(tmp_path) == 1
    assert answer(tmp_path) == {"error": "ValueError: no good"}
    assert "Traceback" in capfd.readouterr().err


def test_the_worker_is_interrupted(tmp_path, monkeypatch):
    def interrupt(job, on_stage):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "measure_row", interrupt)
    assert run_worker(tmp_path) == 130
    assert not (tmp_path / "answer.json").exists()


def test_a_rival_works_in_a_folder_of_the_cache(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "measure_row", lambda job, on_stage: seen.append(os.getcwd()) or {})
    assert run_worker(tmp_path, recipe="rival:transformers") == 0
    assert seen == [str(tmp_path / "cache" / "bench")]
    monkeypatch.chdir(tmp_path)
    assert run_worker(tmp_path) == 0
    assert seen[1] == str(tmp_path)


def run_worker(folder, **more):
    task = {"do": "measure", "job": {**asdict(JOB), **more}}
    (folder / "task.json").write_text(json.dumps(task))
    return worker.main([str(folder / name) for name in ("task.json", "answer.json", "stage")])


def answer(folder):
    return json.loads((folder / "answer.json").read_text())


def test_a_real_worker_says_which_file_is_missing(tmp_path):
    absent = replace(
        JOB, recipe="fp32", checkpoint=str(tmp_path / "absent.pth"), folder=str(tmp_path)
    )
    with pytest.raises(WorkerError, match=r"CheckpointNotFoundError: .*absent\.pth"):
        worker.run_task("measure", absent)
