"""Which rows there are, in which order, and what becomes of those that fail; answers are made
up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from samfast.bench import ladder
from samfast.bench.environment import stamp
from samfast.bench.job import Job, blank
from samfast.bench.prepare import Preparation
from samfast.bench.process import WorkerError
from samfast.errors import InputError, RecipeError
from samfast.recipes import RECIPES

RATES = {"bf16": 2.0, "fp32": 1.0}


class Worker:
    """Stands in for `process.ask`: answers every job, at a speed of its own for each recipe."""

    def __init__(self, speeds=None, fail=None):
        self.speeds = speeds or {}
        self.fail = fail or {}
        self.tasks: list[Any] = []
        self.options: list[dict[str, Any]] = []

    @property
    def jobs(self) -> list[Job]:
        return [task for task in self.tasks if isinstance(task, Job)]

    def __call__(self, task, **options) -> Iterator[dict[str, Any]]:
        self.tasks.append(task)
        self.options.append(options)
        if isinstance(task, Preparation):
            self._raise("prepare", 0)
            layers = dict.fromkeys(("qkv", "proj", "lin1", "lin2"), 1.0)
            one = {"tflops": RATES, "layers": {"fp32": layers, "bf16": layers}, "refused": {}}
            yield {"image_size": 1024, "ceilings": {str(n): one for n in task.batch_sizes}}
            return
        for batch_size in task.batch_sizes:
            self._raise(task.recipe, batch_size)
            row = blank(task, batch_size, "ok")
            row["first_call_seconds"], row["cache"] = 1.0, "warm" if task.first_only else "cold"
            if not task.first_only:
                row["encoder_images_per_second"] = self.speeds.get(task.recipe, 1.0) * batch_size
                row["kernels"] = {"rows": []} if task.kernels else None
            yield row

    def _raise(self, name, batch_size):
        error = self.fail.get((name, batch_size))
        if error is not None:
            raise error


def run(recipes=("fp32",), worker=None, **options):
    return ladder.run(recipes, device="cpu", ask=worker or Worker(), **options)


def statuses(rows):
    return {(row["recipe"], row["batch_size"]): row["status"] for row in rows}


def test_every_recipe_has_a_row_and_refusals_say_why():
    worker = Worker()
    done: list[int] = []
    rows = run(None, worker, progress=done.append)
    assert [row["recipe"] for row in rows] == list(RECIPES)
    assert done == [1] * len(rows)
    by_name = {row["recipe"]: row for row in rows}
    assert by_name["fp16_sdpa"]["status"].startswith("refused: fp16 needs a GPU")
    assert by_name["fp16_sdpa"]["images_per_second"] is None
    assert by_name["fp32"]["status"] == "ok"
    first, *jobs = worker.tasks
    assert isinstance(first, Preparation)
    assert first.batch_sizes == (1,)
    assert "bfloat16" in first.dtypes
    assert {"bf16", "fp32"} <= set(first.formats)
    assert len({job.folder for job in jobs} | {first.folder}) == 1
    assert all(job.weights == "packaged" for job in jobs)
    json.dumps(rows, allow_nan=False)


def test_batch_sizes_are_measured_in_one_process_a_recipe():
    worker = Worker()
    rows = run(["fp32", "bf16"], worker, batch_size=(1, 8, 1, 32))
    assert [job.batch_sizes for job in worker.jobs] == [(1, 8, 32)] * 2
    assert list(statuses(rows)) == [(name, n) for name in ("fp32", "bf16") for n in (1, 8, 32)]
    assert worker.tasks[0].batch_sizes == (1, 8, 32)
    assert run(["fp32"], worker, batch_size=4)[0]["batch_size"] == 4


def test_ratios_and_shares():
    worker = Worker({"rival:transformers": 2.0, "bf16": 5.0})
    rows = run(["bf16", "rival:transformers"], worker, batch_size=(1, 2))
    assert all(row["ratio_to"] == {"transformers": 2.5} for row in rows if row["recipe"] == "bf16")
    assert all(row["ratio_to"] == {"transformers": 1.0} for row in rows if row["recipe"] != "bf16")
    assert rows[0]["ceilings"]["tflops"] == RATES
    # The layers at 1 TFLOP/s, the rest of the products at the mean of 2.
    from samfast.bench.work import encoder_flop, layer_flop
    from samfast.model.config import CONFIGS

    config = CONFIGS["vit_xs"]
    in_layers = sum(layer_flop(config).values())
    least = (in_layers + (encoder_flop(config) - in_layers) / 2) / 1e12
    assert rows[0]["share_of_ceiling"] == pytest.approx(least * 5)


def test_names():
    rows = run(["auto", "fp32", "auto"])
    assert [row["recipe"] for row in rows] == list(dict.fromkeys([rows[0]["recipe"], "fp32"]))
    assert rows[0]["recipe"] in RECIPES
    assert [row["chosen_by"] == "auto" for row in rows] == [
        row["recipe"] == rows[0]["recipe"] for row in rows
    ]
    assert all(row["chosen_by"] is None for row in run(["fp32", rows[0]["recipe"]]))
    with pytest.raises(RecipeError, match=r"'fp7'.*fp32"):
        run(["fp32", "fp7"])
    with pytest.raises(RecipeError, match="no recipe"):
        run([])


@pytest.mark.parametrize(
    "options",
    [{"model": "vit_z"}, {"batch_size": 0}, {"batch_size": (1, 0)}, {"repeats": 0}, {"timeout": 0}],
    ids=str,
)
def test_mistakes(options):
    with pytest.raises(InputError, match=next(iter(options)).replace("model", "vit_z")):
        run(**options)
    with pytest.raises(InputError, match="batch_size is empty"):
        run(batch_size=())


def test_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))  # no checkpoint of vit_b in this cache
    assert run()[0]["weights"] == "packaged"
    assert run(model="vit_b")[0]["weights"] == "random"
    worker = Worker()
    (tmp_path / "b.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert run(worker=worker, checkpoint="b.pth")[0]["weights"] == "checkpoint b.pth"
    assert worker.jobs[0].checkpoint == str(tmp_path / "b.pth")  # a rival's process works elsewhere


def test_interrupt_keeps_finished_rows():
    worker = Worker(fail={("fp32_folded", 2): KeyboardInterrupt()})
    rows = run(["fp32", "fp32_folded", "bf16"], worker, batch_size=(1, 2, 3))
    assert list(statuses(rows).values()) == ["ok"] * 4 + ["interrupted"]
    assert rows[-1]["batch_size"] == 2


def test_without_a_reference_nothing_is_measured():
    worker = Worker(fail={("prepare", 0): WorkerError("out of memory", "")})
    rows = run(["fp32", "bf16"], worker)
    assert all(
        "no fp32 answers" in row["status"] and "out of memory" in row["status"] for row in rows
    )
    assert len(worker.tasks) == 1


def test_a_process_that_fails_is_followed_by_one_for_the_other_batch_sizes():
    said = []
    worker = Worker(
        fail={("bf16", 8): WorkerError("OutOfMemoryError: CUDA out of memory", "the log")}
    )
    rows = run(
        ["bf16"], worker, batch_size=(1, 8, 32), on_failure=lambda *words: said.append(words)
    )
    found = statuses(rows)
    assert found["bf16", 1] == found["bf16", 32] == "ok"
    assert found["bf16", 8] == "failed: OutOfMemoryError: CUDA out of memory"
    assert [job.batch_sizes for job in worker.jobs] == [(1, 8, 32), (32,)]
    assert said == [("bf16", "the log")]


def test_a_process_that_says_too_little_has_failed():
    class Silent(Worker):
        def __call__(self, task, **options):
            yield from super().__call__(task, **options) if isinstance(task, Preparation) else ()

    assert run(["fp32"], Silent())[0]["status"].startswith("failed: its process ended")


def test_rows_are_reported_as_they_come():
    seen = []
    run(
        ["fp32", "rival:transformers"],
        batch_size=(1, 2),
        on_rows=lambda rows: seen.append(statuses(rows)),
    )
    assert [len(rows) for rows in seen] == [1, 2, 3, 4]


def test_time_runs_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Worker):
        def __call__(self, task, **options):
            for row in super().__call__(task, **options):
                now[0] += 10
                yield row
                if now[0] > 35:
                    raise WorkerError("not done in time", "")

    worker = Slow()
    rows = run(["fp32", "bf16", "fp32_sdpa"], worker, batch_size=(1, 2), seconds=35, timeout=20)
    assert list(statuses(rows).values()) == ["ok"] * 3 + [ladder.SKIPPED] * 3
    assert [options["timeout"] for options in worker.options] == [20, 20, 5]


def test_a_row_may_have_a_limit_of_its_own():
    worker = Worker()
    run(["fp32"], worker, timeout=7)
    assert [options["timeout"] for options in worker.options] == [7, 7]
    worker = Worker()
    run(["fp32"], worker)
    assert [options["timeout"] for options in worker.options] == [None, None]


def test_cold_caches_are_a_recipe_s_own():
    worker = Worker()
    run(["fp32", "bf16"], worker, cold=True, restart=True)
    prepared, *others = (options["environment"] for options in worker.options)
    assert prepared == {}
    first, again, second, _ = others
    assert set(first) == {"SAMFAST_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert first == again != second
    with pytest.raises(InputError, match="in_process"):
        list(ladder._ask_here(worker.jobs[0], environment=first))


def test_the_first_call_again_in_a_second_process():
    worker = Worker()
    rows = run(["bf16"], worker, batch_size=(8, 1), restart=True)
    assert rows[0]["second_process"] == {"first_call_seconds": 1.0, "cache": "warm"}
    assert rows[1]["second_process"] is None
    assert worker.jobs[-1].first_only and worker.jobs[-1].batch_sizes == (8,)
    assert not worker.jobs[0].first_only


@pytest.fixture
def clean(monkeypatch):
    """Rows that say they are of a clean checkout, as a finished run's are."""
    monkeypatch.setenv("SAMFAST_COMMIT", "abc")
    monkeypatch.setattr("samfast.bench.environment._commit", lambda package: ("abc", None))


def test_resuming(clean, tmp_path):
    path = tmp_path / "rows.json"
    failing = Worker(fail={("bf16", 2): WorkerError("lost", "")})
    earlier = run(["fp32", "bf16"], failing, batch_size=(1, 2))
    earlier[0]["spread"] = 0.125  # tells that row from a new one
    earlier.append({**earlier[0], "model": "vit_b"})
    path.write_text(json.dumps(earlier))
    worker = Worker({"rival:transformers": 4.0})
    rows = run(["fp32", "bf16", "rival:transformers"], worker, batch_size=(1, 2), resume=path)
    assert [job.recipe for job in worker.jobs] == ["bf16", "rival:transformers"]
    assert worker.jobs[0].batch_sizes == (2,)
    assert rows[0]["model"] == "vit_b"  # another run's
    assert rows[0]["ratio_to"] == {}
    assert rows[1]["spread"] == 0.125
    assert rows[1]["ratio_to"] == {"transformers": 0.25}
    assert set(statuses(rows).values()) == {"ok"}
    assert len(rows) == 7


def test_resuming_measures_what_is_asked_for_besides(clean):
    earlier = run(["fp32"])
    worker = Worker()
    assert run(["fp32"], worker, resume=earlier) == earlier
    assert worker.tasks == []
    run(["fp32"], worker, resume=earlier, kernels=True)
    assert len(worker.jobs) == 1
    run(["fp32"], worker, resume=earlier, restart=True)
    assert len(worker.jobs) == 3
    run(["fp32"], worker, resume=[{**earlier[0], "status": "failed: lost"}])
    assert len(worker.jobs) == 4


def test_nothing_is_kept_of_another_commit(clean, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(run(["fp32"])))
    monkeypatch.setattr("samfast.bench.environment._commit", lambda package: ("def", None))
    worker = Worker()
    run(["fp32"], worker, resume=path)
    assert len(worker.jobs) == 1
    assert stamp("cpu")["commit"] == "def"
