"""Which rows there are, in which order, and what becomes of those that fail; answers are made
up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samfast.bench import ladder
from samfast.bench.bench_job import Job, blank
from samfast.bench.ceilings import encoder_flop, layer_flop
from samfast.bench.environment import stamp
from samfast.bench.worker import WorkerError
from samfast.errors import InputError, RecipeError
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES

RATES = {"bf16": 2.0, "fp32": 1.0}


class Worker:
    """Stands in for `worker.run_task`: answers every task, at a speed for each recipe."""

    def __init__(self, speeds=None, fail=None):
        self.speeds = speeds or {}
        self.fail = fail or {}
        self.tasks: list[tuple[str, Job]] = []
        self.options: list[dict[str, Any]] = []

    @property
    def jobs(self) -> list[Job]:
        return [job for do, job in self.tasks if do == "measure"]

    def __call__(self, do, job, **options) -> dict[str, Any]:
        self.tasks.append((do, job))
        self.options.append(options)
        error = self.fail.get(("prepare", 0) if do == "prepare" else (job.recipe, job.batch_size))
        if error is not None:
            raise error
        if do == "prepare":
            layers = dict.fromkeys(("qkv", "proj", "lin1", "lin2"), 1.0)
            one = {"tflops": RATES, "layers": {"fp32": layers, "bf16": layers}, "refused": {}}
            return {"image_size": 1024, "ceilings": {str(n): one for n in job.batch_sizes}}
        row = blank(job, "ok")
        row["first_call_seconds"] = 1.0
        row["encoder_images_per_second"] = self.speeds.get(job.recipe, 1.0) * job.batch_size
        row["kernels"] = {"rows": []} if job.kernels else None
        return row


def run(recipes=("fp32",), worker=None, **options):
    return ladder.run(recipes, device="cpu", run_task=worker or Worker(), **options)


def statuses(rows):
    return {(row["recipe"], row["batch_size"]): row["status"] for row in rows}


def test_every_recipe_has_a_row_and_refusals_say_why():
    asked = Worker()
    seen: list[tuple[int, str]] = []
    rows = run(None, asked, on_rows=lambda rows, latest: seen.append((len(rows), latest["recipe"])))
    assert [row["recipe"] for row in rows] == list(RECIPES)
    assert seen == list(enumerate(RECIPES, start=1))
    by_name = {row["recipe"]: row for row in rows}
    assert by_name["fp16_sdpa"]["status"].startswith("refused: fp16 needs a GPU")
    assert by_name["fp16_sdpa"]["images_per_second"] is None
    assert by_name["fp32"]["status"] == "ok"
    assert [do for do, _ in asked.tasks].count("prepare") == 1 and asked.tasks[0][0] == "prepare"
    assert all(job.names == tuple(RECIPES) for _, job in asked.tasks)
    assert len({job.folder for _, job in asked.tasks}) == 1
    assert all(job.weights == "packaged" for job in asked.jobs)
    json.dumps(rows, allow_nan=False)


def test_a_row_for_each_batch_size():
    asked = Worker()
    rows = run(["fp32", "bf16"], asked, batch_size=(1, 8, 1, 32))
    assert [(job.recipe, job.batch_size) for job in asked.jobs] == list(statuses(rows))
    assert list(statuses(rows)) == [(name, n) for name in ("fp32", "bf16") for n in (1, 8, 32)]
    assert asked.tasks[0][1].batch_sizes == (1, 8, 32)
    assert run(["fp32"], asked, batch_size=4)[0]["batch_size"] == 4


def test_ratios_and_shares():
    asked = Worker({"rival:transformers": 2.0, "bf16": 5.0})
    rows = run(["bf16", "rival:transformers"], asked, batch_size=(1, 2))
    assert all(row["ratio_to"] == {"transformers": 2.5} for row in rows if row["recipe"] == "bf16")
    assert all(row["ratio_to"] == {"transformers": 1.0} for row in rows if row["recipe"] != "bf16")
    assert rows[0]["ceilings"]["tflops"] == RATES
    # The layers at 1 TFLOP/s, the rest of the products at the mean of 2.
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
    [{"model": "vit_z"}, {"batch_size": 0}, {"batch_size": (1, 0)}],
    ids=str,
)
def test_mistakes(options):
    with pytest.raises(InputError, match=next(iter(options)).replace("model", "vit_z")):
        run(**options)
    with pytest.raises(InputError, match="batch_size"):
        run(batch_size=())


def test_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))  # no checkpoint of vit_b in this cache
    assert run()[0]["weights"] == "packaged"
    assert run(model="vit_b")[0]["weights"] == "random"
    asked = Worker()
    (tmp_path / "b.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert run(worker=asked, checkpoint="b.pth")[0]["weights"] == "checkpoint b.pth"
    assert asked.jobs[0].checkpoint == str(tmp_path / "b.pth")  # a rival's process works elsewhere


def test_interrupt_keeps_finished_rows():
    asked = Worker(fail={("fp32_folded", 2): KeyboardInterrupt()})
    rows = run(["fp32", "fp32_folded", "bf16"], asked, batch_size=(1, 2, 3))
    assert list(statuses(rows).values()) == ["ok"] * 4 + ["interrupted"]
    assert rows[-1]["batch_size"] == 2


def test_without_a_reference_nothing_is_measured():
    asked = Worker(fail={("prepare", 0): WorkerError("out of memory", "")})
    rows = run(["fp32", "bf16"], asked)
    assert all(
        "no fp32 answers" in row["status"] and "out of memory" in row["status"] for row in rows
    )
    assert len(asked.tasks) == 1


def test_a_process_that_fails_is_a_row_and_its_log_is_logged(caplog):
    error = WorkerError("OutOfMemoryError: CUDA out of memory", "the log")
    with caplog.at_level("INFO", "samfast"):
        rows = run(["bf16"], Worker(fail={("bf16", 8): error}), batch_size=(1, 8, 32))
    assert statuses(rows) == {
        ("bf16", 1): "ok",
        ("bf16", 8): "failed: OutOfMemoryError: CUDA out of memory",
        ("bf16", 32): "ok",
    }
    assert caplog.messages == ["bf16: the log"]


def test_cold_caches_are_one_row_s():
    asked = Worker()
    rows = run(["fp32", "bf16"], asked, cold=True)
    first, second = (options["environment"] for options in asked.options[1:])
    assert set(first) == {"SAMFAST_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert set(first.values()).isdisjoint(second.values())
    assert [row["cache"] for row in rows] == ["cold", "cold"]
    assert run(["fp32"])[0]["cache"] is None


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
    asked = Worker({"rival:transformers": 4.0})
    rows = run(["fp32", "bf16", "rival:transformers"], asked, batch_size=(1, 2), resume=path)
    assert [(job.recipe, job.batch_size) for job in asked.jobs] == [
        ("bf16", 2),
        ("rival:transformers", 1),
        ("rival:transformers", 2),
    ]
    assert rows[0]["model"] == "vit_b"  # another run's
    assert rows[0]["ratio_to"] == {}
    assert rows[1]["spread"] == 0.125
    assert rows[1]["ratio_to"] == {"transformers": 0.25}
    assert set(statuses(rows).values()) == {"ok"}
    assert len(rows) == 7


def test_resuming_measures_what_is_missing(clean):
    earlier = run(["fp32"])
    asked = Worker()
    assert run(["fp32"], asked, resume=earlier) == earlier
    assert asked.tasks == []
    run(["fp32"], asked, resume=earlier, kernels=True)
    assert len(asked.jobs) == 1
    run(["fp32"], asked, resume=[{**earlier[0], "status": "failed: lost"}])
    assert len(asked.jobs) == 2


def test_nothing_is_kept_of_another_commit(clean, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(run(["fp32"])))
    monkeypatch.setattr("samfast.bench.environment._commit", lambda package: ("def", None))
    asked = Worker()
    run(["fp32"], asked, resume=path)
    assert len(asked.jobs) == 1
    assert stamp("cpu")["commit"] == "def"
