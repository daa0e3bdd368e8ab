"""Work that runs out of GPU memory is repeated in halves once, and then fails with a remedy."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain

import pytest
import torch

from samfast.device.retry import NoRetry, RetryOnOOM
from samfast.errors import DeviceMemoryError, SamfastError


class Gpu:
    """Work that runs out of memory with more than `most` items at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[int] = []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls.append(stop - start)
        if stop - start > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(start, stop))


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def test_chunks_that_fit_are_not_halved(caplog) -> None:
    gpu = Gpu(4)
    with caplog.at_level(logging.WARNING, "samfast"):
        assert joined(RetryOnOOM().map_chunks(10, 4, gpu)) == list(range(10))
    assert gpu.calls == [4, 4, 2]
    assert not caplog.records
    assert list(RetryOnOOM().map_chunks(0, 4, gpu)) == []


def test_later_chunks_are_half_as_long_and_one_warning_is_logged(caplog) -> None:
    gpu, retry = Gpu(4), RetryOnOOM()
    with caplog.at_level(logging.WARNING, "samfast"):
        assert joined(retry.map_chunks(19, 7, gpu)) == list(range(19))
        assert joined(retry.map_chunks(5, 3, gpu)) == list(
            range(5)
        )  # another step of the same image
    assert gpu.calls == [7, 4, 4, 4, 4, 3, 2, 2, 1]
    assert [record.name for record in caplog.records] == ["samfast"]
    assert "7 at a time" in caplog.text and "max_memory" in caplog.text


def test_a_short_chunk_is_halved_by_its_length() -> None:
    gpu = Gpu(3)
    assert joined(RetryOnOOM().map_chunks(5, 64, gpu)) == list(range(5))
    assert gpu.calls == [5, 3, 2]


def test_run_chunks_continues_after_the_chunks_that_succeeded(caplog) -> None:
    gpu, put = Gpu(4), list[int]()
    with caplog.at_level(logging.WARNING, "samfast"):
        RetryOnOOM("sell the piano").run_chunks(
            10, 27, 8, lambda start, stop: put.extend(gpu(start, stop))
        )
    assert put == list(range(10, 27))
    assert "sell the piano" in caplog.text and "max_memory" not in caplog.text


def test_work_without_chunks_fails_with_the_remedy() -> None:
    def work() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert RetryOnOOM().run(lambda: 3) == NoRetry().run(lambda: 3) == 3
    with pytest.raises(DeviceMemoryError, match="ran out of memory: sell the piano"):
        RetryOnOOM("sell the piano").run(work)
    with pytest.raises(torch.OutOfMemoryError):
        NoRetry().run(work)


def test_no_retry_lets_the_error_through() -> None:
    gpu = Gpu(4)
    assert joined(NoRetry().map_chunks(6, 4, gpu)) == list(range(6))
    with pytest.raises(torch.OutOfMemoryError):
        list(NoRetry().map_chunks(6, 5, gpu))
    assert gpu.calls == [4, 2, 5]


@pytest.mark.parametrize(("step", "most"), [(8, 3), (8, 0), (1, 0)])
def test_the_second_failure_says_what_to_lower(step: int, most: int) -> None:
    gpu = Gpu(most)
    with pytest.raises(
        DeviceMemoryError, match=r"max_memory, points_per_batch or batch_size"
    ) as caught:
        list(RetryOnOOM().map_chunks(10, step, gpu))
    assert len(gpu.calls) == (2 if step > 1 else 1)
    assert isinstance(caught.value, SamfastError) and isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_halving_is_remembered_between_calls() -> None:
    retry = RetryOnOOM()
    list(retry.map_chunks(8, 8, Gpu(4)))
    with pytest.raises(DeviceMemoryError):
        list(retry.map_chunks(8, 8, Gpu(3)))


def test_other_errors_pass() -> None:
    def work(start: int, stop: int) -> None:
        raise RuntimeError("not about memory")

    with pytest.raises(RuntimeError, match="not about memory"):
        list(RetryOnOOM().map_chunks(3, 2, work))
