"""`samfast serve --ray` as a process: two replicas, the death of one, and the end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import samfast
from samfast import coco_rle
from samfast.cli.main import main
from samfast.cli.serve_on_ray import replica_range
from samfast.serve.image_owner import owners
from samfast.types import Prompts
from tests.cli.test_serve_command import CLICK, Process, server
from tests.ray_processes import listening_beyond_loopback, ray_processes
from tests.serve.running import picture, pixels_of

pytest.importorskip("ray")


def own_counts(data: bytes) -> list[str]:
    """The masks of the click by an engine of this process."""
    sam = samfast.load("vit_xs", device="cpu", recipe="fp32_sdpa")
    (masks,) = sam.predict([pixels_of(data)], [Prompts(points=[[[40, 30]]], labels=[[1]])])
    return [coco_rle.encode(mask)["counts"] for mask in masks.masks[0].numpy()]


def counts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [mask["segmentation"]["counts"] for mask in answer.json()["objects"][0]["masks"]]


def lookups(client: httpx.Client) -> dict[tuple[str, str], float]:
    """By replica and tier, how many embeddings were found there."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.labels["replica"], sample.labels["tier"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "samfast_embedding_lookups_total"
    }


def replicas_of(client: httpx.Client) -> set[str]:
    """The names of the replicas, which are drawn at random."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {sample.labels["replica"] for family in families for sample in family.samples}


def three_of_each(replicas: set[str]) -> dict[str, bytes]:
    """Pictures by their ids, of which each replica owns three."""
    owned: dict[str, dict[str, bytes]] = {replica: {} for replica in replicas}
    for seed in range(1000):
        data = picture(seed)
        image_id = hashlib.sha256(data).hexdigest()
        mine = owned[owners(image_id, replicas)[0]]
        if len(mine) < 3:
            mine[image_id] = data
    assert [len(each) for each in owned.values()] == [3] * len(replicas)
    return {image_id: data for each in owned.values() for image_id, data in each.items()}


def answering_process(running: Process, image_id: str) -> int:
    """The process whose log says that it has answered a click on the image."""
    end = time.monotonic() + 20
    while True:
        for line in running.lines:
            match = re.search(r"pid=(\d+)\) (\{.*)", line)
            if match and f"/v1/images/{image_id}/predict" in match[2]:
                return int(match[1])
        assert time.monotonic() < end, running.lines
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_two_replicas_one_of_which_dies(tmp_path):
    before = listening_beyond_loopback()
    arguments = ("--ray", "--replicas", "2", "--store", str(tmp_path / "store"))
    with server(*arguments, "--recipe", "fp32_sdpa") as running:
        processes = ray_processes(running.process.pid)
        assert sum("ServeReplica" in name for name in processes.values()) == 2
        assert listening_beyond_loopback() - before == set()
        with httpx.Client(base_url=running.address, timeout=60) as client:
            replicas = replicas_of(client)
            assert len(replicas) == 2
            images = three_of_each(replicas)
            for image_id, data in images.items():
                assert client.post("/v1/images", content=data).json()["id"] == image_id
            answers = {
                image_id: [
                    counts(client.post(f"/v1/images/{image_id}/predict", json=CLICK))
                    for _ in range(3)
                ]
                for image_id in images
            }
            for each in answers.values():
                assert each[0] == each[1] == each[2]
            image_id, data = next(iter(images.items()))
            assert answers[image_id][0] == own_counts(data)
            # Each image was encoded once, and by its owner.
            tiers = lookups(client)
            encoded = {replica: n for (replica, tier), n in tiers.items() if tier == "encoded"}
            assert encoded == dict.fromkeys(replicas, 3)
            assert not any(tier == "store" for _, tier in tiers)

            os.kill(answering_process(running, image_id), signal.SIGKILL)
            assert counts(patient(client, image_id)) == answers[image_id][0]
            assert sum(n for (_, tier), n in lookups(client).items() if tier == "store") >= 1
        assert running.end(signal.SIGTERM) == 0
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in processes)


def patient(client: httpx.Client, image_id: str) -> httpx.Response:
    """The answer to a click, asked again while the dead replica's requests fail."""
    end = time.monotonic() + 30
    while True:
        answer = client.post(f"/v1/images/{image_id}/predict", json=CLICK)
        if answer.status_code < 500 or time.monotonic() > end:
            return answer
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_does_not_go_together(capsys, tmp_path):
    for arguments, message in (
        (["--ray"], "--ray needs --store"),
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--ray", "--store", str(tmp_path), "--wire", "roboflow"], "does not go with --ray"),
        (["--ray", "--replicas", "3:2", "--store", str(tmp_path)], "less than the first"),
    ):
        assert main(["serve", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_ranges_of_replicas():
    assert replica_range("2") == (2, 2)
    assert replica_range("1:4") == (1, 4)


def test_without_ray_the_extra_is_named(tmp_path):
    run = without_ray("serve", "--ray", "--store", str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.strip().endswith("needs ray: pip install 'samfast[cluster]'")


def without_ray(*arguments: str) -> Any:
    """The command in a process that has no Ray."""
    program = (
        "import sys; sys.modules['ray'] = None; "
        f"from samfast.cli.main import main; sys.exit(main({json.dumps(arguments)}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
