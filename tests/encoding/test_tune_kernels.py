"""Tuning the attention kernels: only what is right is timed, the fastest of it is used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samfast.attention import active_configs, reference, tuning
from samfast.attention.kernels.tunables import candidates
from samfast.encoding import tune_kernels
from samfast.loading import random_weights
from samfast.model.config import CONFIGS

CPU = torch.device("cpu")


def test_the_shapes_of_a_model_each_once():
    sam = random_weights(
        replace(CONFIGS["vit_xs"], image_size=256, depth=4, global_attn_indexes=(1, 3))
    )
    shapes = tune_kernels.shapes(sam, 2, CPU)
    assert [(s.window, s.grid, s.num_heads, s.dim, s.dtype) for s in shapes] == [
        (14, (16, 16), 3, 64, torch.float32),
        (0, (16, 16), 3, 64, torch.float32),
    ]


def answers(wrong=(), slow=()):
    """A kernel that is right but for the configurations in `wrong`."""

    def launch(config, qkv, table_h, table_w, pad, shape):
        options = {"num_heads": shape.num_heads, "window": shape.window, "pad": pad}
        right = reference.attend(qkv, table_h, table_w, **options)
        return right * 1.01 if config in wrong else right

    return launch


@pytest.mark.parametrize("window", [0, 3])
def test_a_wrong_configuration_is_never_timed_and_the_fastest_right_one_wins(window, monkeypatch):
    shape = tuning.Shape(1, (4, 5), 2, 16, window, torch.float32)
    all_of_them = candidates(bool(window), torch.float32, (0, 0))
    timed: list[int] = []

    def clock(work, device):
        work()
        timed.append(len(timed))
        return 5.0 - len(timed)  # each faster than the last

    monkeypatch.setattr(tuning, "_milliseconds", clock)
    row = tuning.tune(shape, CPU, answers(wrong=all_of_them[-1:]))
    assert len(timed) == len(all_of_them) - 1
    assert row["config"] == vars(all_of_them[-2])
    assert (
        "relative error" in row["tried"][-1]["refused"] and row["tried"][-1]["milliseconds"] is None
    )
    try:
        active_configs.use([row])
        assert active_configs.config(bool(window), torch.float32, 16, CPU) == all_of_them[-2]
    finally:
        active_configs.forget()


def test_a_kernel_that_is_never_right_is_an_error(monkeypatch):
    monkeypatch.setattr(
        tuning, "_milliseconds", lambda work, device: pytest.fail("it must not be timed")
    )
    shape = tuning.Shape(1, (4, 5), 2, 16, 0, torch.float32)
    with pytest.raises(RuntimeError, match="no configuration"):
        tuning.tune(shape, CPU, answers(wrong=candidates(False, torch.float32, (0, 0))))


def test_nan_is_wrong(monkeypatch):
    monkeypatch.setattr(
        tuning, "_milliseconds", lambda work, device: pytest.fail("it must not be timed")
    )
    shape = tuning.Shape(1, (4, 5), 2, 16, 0, torch.float32)
    with pytest.raises(RuntimeError, match="inf"):
        tuning.tune(
            shape, CPU, lambda config, qkv, *rest: torch.full_like(qkv[..., :32], float("nan"))
        )


def test_what_a_compiler_raises_is_noted(monkeypatch):
    monkeypatch.setattr(tuning, "_milliseconds", lambda work, device: 1.0)
    shape = tuning.Shape(1, (4, 5), 2, 16, 0, torch.float32)
    first, *_ = candidates(False, torch.float32, (0, 0))

    def launch(config, *arguments):
        if config == first:
            raise ValueError("out of shared memory")
        return answers()(config, *arguments)

    row = tuning.tune(shape, CPU, launch)
    assert row["tried"][0]["refused"] == "ValueError: out of shared memory"
