"""The batching policy on simulated arrivals: no threads, no tensors, a clock that we set."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

from samfast.serve.batch_policy import (
    PATIENCE,
    BatchPolicy,
    Job,
    Operation,
    QueueFullError,
    Urgency,
)

CLICK = Operation.DECODE, Urgency.CLICK
ENCODE_FOR_CLICK = Operation.ENCODE, Urgency.CLICK
UPLOAD = Operation.ENCODE, Urgency.UPLOAD
PREWARM = Operation.ENCODE, Urgency.BULK
EVERYTHING = Operation.SEGMENT, Urgency.BULK

Done = dict[str, tuple[float, float, int]]
"""For each job: when its batch began, when it ended, and how many jobs the batch had."""


def policy(max_wait: float = 0.005, queued: int = 10_000, objects: int = 64) -> BatchPolicy[str]:
    return BatchPolicy(
        {
            Operation.DECODE: objects,
            Operation.ENCODE: 8,
            Operation.SEGMENT: 1,
            Operation.COPY: 16,
        },
        max_queued=dict.fromkeys(Urgency, queued),
        max_wait=max_wait,
    )


def job(
    kind: tuple[Operation, Urgency], name: str, at: float = 0.0, client: str = "a", cost: int = 1
) -> Job[str]:
    return Job(*kind, cost, client, at, name)


def seconds_of(batch: list[Job[str]]) -> float:
    """A device for which a batch costs 10 ms, and each object 1 ms or each image 50 ms."""
    each = {Operation.DECODE: 0.001, Operation.ENCODE: 0.05, Operation.SEGMENT: 2.0}
    return 0.01 + sum(each[job.operation] * job.cost for job in batch)


def simulate(
    waiting: BatchPolicy[str],
    arrivals: Iterable[Job[str]],
    again: Callable[[Job[str], float], Job[str] | None] = lambda job, now: None,
    duration: Callable[[list[Job[str]]], float] = seconds_of,
) -> Done:
    """Run a device that does one batch at a time; `again` is what a client does when answered."""
    order = itertools.count()
    events = [(each.arrived, next(order), each) for each in arrivals]
    heapq.heapify(events)
    done: Done = {}
    now = 0.0
    while True:
        while events and events[0][0] <= now:
            waiting.submit(heapq.heappop(events)[2])
        pause = waiting.wait_seconds(now)
        if pause == 0:
            batch = waiting.next_batch(now)
            assert batch
            assert len({each.operation for each in batch}) == 1
            end = now + duration(batch)
            for each in batch:
                assert each.payload not in done, "answered twice"
                done[each.payload] = now, end, len(batch)
                following = again(each, end)
                if following is not None:
                    heapq.heappush(events, (following.arrived, next(order), following))
            waiting.finished(batch[0].operation, len(batch), end - now)
            # What arrives meanwhile waits; the device sees it when it is free.
            now = end
        elif events:
            now = events[0][0] if pause is None else min(now + pause, events[0][0])
        elif pause is not None:
            now += pause
        else:
            return done


def test_a_lone_click_does_not_wait_for_company():
    done = simulate(policy(max_wait=1.0), [job(CLICK, "one", at=3.0)])
    assert done["one"][0] == 3.0


def test_jobs_that_wait_are_done_together_up_to_the_cost_of_a_batch():
    waiting = policy(objects=8)
    for name in "abcdefghijkl":
        waiting.submit(job(CLICK, name, client=name))
    assert [each.payload for each in waiting.next_batch(1.0)] == list("abcdefgh")
    assert [each.payload for each in waiting.next_batch(1.0)] == list("ijkl")
    assert waiting.next_batch(1.0) == []


def test_a_job_above_the_cost_of_a_batch_has_one_of_its_own():
    waiting = policy(objects=8)
    waiting.submit(job(CLICK, "small", client="a"))
    waiting.submit(job(CLICK, "large", client="b", cost=100))
    waiting.submit(job(CLICK, "next", client="c"))
    batches = [[each.payload for each in waiting.next_batch(1.0)] for _ in range(3)]
    assert batches == [["small"], ["large"], ["next"]]


def test_clients_that_click_in_turn_stay_in_one_batch():
    # 64 clients, each of whom clicks 0 to 3 ms after being answered: without the short wait a
    # batch of one would begin for the first of them, and two groups would alternate for ever.
    draw = random.Random(1)
    clicks = dict.fromkeys(map(str, range(64)), 0)

    def again(each: Job[str], now: float) -> Job[str] | None:
        clicks[each.client] += 1
        count = clicks[each.client]
        if count == 50:
            return None
        return job(
            CLICK, f"{each.client}/{count}", at=now + draw.uniform(0, 0.003), client=each.client
        )

    first = [job(CLICK, f"{i}/0", client=str(i), at=0.001 * (i / 64)) for i in range(64)]
    done = simulate(policy(), first, again)
    assert len(done) == 64 * 50
    sizes = [size for name, (_, _, size) in done.items() if int(name.partition("/")[2]) >= 5]
    assert sum(sizes) / len(sizes) > 60


def test_a_click_overtakes_uploads_and_bulk_that_wait():
    arrivals = [job(UPLOAD, f"upload {i}", at=0.0, client="u") for i in range(50)]
    arrivals += [job(PREWARM, f"bulk {i}", at=0.0, client="b") for i in range(200)]
    arrivals += [job(CLICK, f"click {i}", at=0.1 + 0.2 * i) for i in range(20)]
    done = simulate(policy(), arrivals)
    assert len(done) == len(arrivals)
    # A click waits for the batch that runs, 8 images in 0.41 s, and for one of uploads once in a
    # second, however many wait.
    waits = sorted(done[f"click {i}"][0] - (0.1 + 0.2 * i) for i in range(20))
    assert waits[-1] <= 2 * 0.41 + 0.02
    assert waits[10] <= 0.42
    uploads = [done[f"upload {i}"][0] for i in range(50)]
    bulk = [done[f"bulk {i}"][0] for i in range(200)]
    assert max(uploads) < sorted(bulk)[50], "uploads go before bulk"


def test_a_click_on_an_upload_that_waits_makes_it_urgent():
    waiting = policy()
    jobs = [job(UPLOAD, f"{i}", client=str(i)) for i in range(20)]
    for each in jobs:
        waiting.submit(each)
    waiting.promote(jobs[17], Urgency.CLICK)
    assert waiting.next_batch(1.0)[0].payload == "17"
    assert len(waiting) == 12
    waiting.promote(jobs[17], Urgency.CLICK)  # it is gone: nothing happens
    assert len(waiting) == 12


@pytest.mark.parametrize("kind", [UPLOAD, PREWARM, EVERYTHING, ENCODE_FOR_CLICK])
def test_nothing_starves_under_endless_clicks(kind):
    # 200 clients keep the device busy with clicks, more than a batch of them at any time.
    def again(each: Job[str], now: float) -> Job[str] | None:
        if each.operation is not Operation.DECODE or now > 60:
            return None
        return job(CLICK, f"{each.client} {now}", at=now, client=each.client)

    arrivals = [job(CLICK, f"{i}", client=str(i)) for i in range(200)]
    done = simulate(policy(), [*arrivals, job(kind, "patient", at=1.0, client="p")], again)
    batch = 0.01 + 64 * 0.001
    # It is due after its patience; then no later click goes before it, and at most those that
    # waited already.
    assert done["patient"][0] - 1.0 < PATIENCE[kind] + 5 * batch


def test_clicks_are_served_soon_while_bulk_never_ends():
    arrivals = [job(PREWARM, f"bulk {i}", client="b") for i in range(2000)]
    arrivals += [job(CLICK, f"click {i}", at=0.5 * i, client=f"c{i % 3}") for i in range(100)]
    done = simulate(policy(), arrivals)
    waits = sorted(done[f"click {i}"][0] - 0.5 * i for i in range(100))
    # The batch that runs when it arrives, and one more when bulk has waited for its patience.
    assert waits[-1] <= 2 * 0.41 + 0.01
    assert waits[90] <= 0.42


def test_a_client_that_floods_delays_others_by_its_share_only():
    flood = [job(CLICK, f"flood {i}", client="greedy") for i in range(5000)]
    modest = [job(CLICK, f"modest {i}", at=0.1, client=f"m{i}") for i in range(10)]
    done = simulate(policy(), [*flood, *modest])
    assert all(done[f"modest {i}"][0] < 0.3 for i in range(10))
    assert done["flood 4999"][1] > 5


def test_clients_take_turns_whatever_they_have_sent():
    waiting = policy(objects=9)
    for client, count in (("a", 50), ("b", 3), ("c", 50)):
        for i in range(count):
            waiting.submit(job(CLICK, f"{client}{i}", client=client))
    shares: dict[str, int] = defaultdict(int)
    for each in waiting.next_batch(1.0):
        shares[each.client] += 1
    assert shares == {"a": 3, "b": 3, "c": 3}


def test_a_full_queue_refuses_and_says_when_to_come_back():
    waiting = policy(queued=10)
    waiting.finished(Operation.DECODE, 1, 10.0)
    for i in range(10):
        waiting.submit(job(CLICK, str(i)))
    with pytest.raises(QueueFullError) as refused:
        waiting.submit(job(CLICK, "one too many"))
    assert 1 <= refused.value.retry_after <= 60
    waiting.submit(job(UPLOAD, "bulk and uploads have a limit of their own"))
    waiting.next_batch(1.0)
    waiting.submit(job(CLICK, "there is room again"))


def test_a_job_that_is_discarded_is_not_done():
    waiting = policy()
    jobs = [job(CLICK, str(i), client=str(i % 2)) for i in range(6)]
    for each in jobs:
        waiting.submit(each)
    assert waiting.discard(jobs[2])
    assert not waiting.discard(jobs[2])
    names = [each.payload for each in waiting.next_batch(1.0)]
    assert sorted(names) == ["0", "1", "3", "4", "5"]
    assert waiting.wait_seconds(0.0) is None


def test_jobs_of_other_operations_can_be_left_out_however_long_they_wait():
    waiting = policy()
    waiting.submit(job(EVERYTHING, "everything", at=-100.0))
    assert waiting.next_batch(1.0, [Operation.DECODE]) == []
    waiting.submit(job(CLICK, "click", at=0.9))
    assert [each.payload for each in waiting.next_batch(1.0, [Operation.DECODE])] == ["click"]
    assert [each.payload for each in waiting.next_batch(1.0)] == ["everything"]


def test_any_trace_is_answered_once_and_in_bounded_time():
    draw = random.Random(7)
    kinds = [CLICK] * 8 + [ENCODE_FOR_CLICK, UPLOAD, PREWARM]
    arrivals = [
        job(
            draw.choice(kinds),
            str(i),
            at=draw.uniform(0, 20),
            client=str(draw.randrange(30)),
            cost=draw.choice([1, 1, 1, 5]),
        )
        for i in range(1500)
    ]
    for each in arrivals:
        if each.operation is Operation.ENCODE:
            each.cost = 1
    done = simulate(policy(), arrivals)
    assert set(done) == {each.payload for each in arrivals}
    for each in arrivals:
        assert done[each.payload][0] >= each.arrived
