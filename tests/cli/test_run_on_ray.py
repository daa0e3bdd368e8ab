"""`samfast run --address`: the files of one device, whoever answers and whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast.cli.main import main
from samfast.cluster.destination import Destination
from samfast.cluster.run_identity import engine_identity, run_identity
from samfast.cluster.run_on_ray import ShardWorker
from samfast.cluster.shards import RunIdentity, shard_of
from samfast.cluster.sources import Source, open_source
from samfast.cluster.work import Everything
from samfast.errors import InputError, SourceGoneError
from tests.cli.test_serve_on_ray import alive, without_ray
from tests.ray_processes import listening_beyond_loopback, ray_processes
from tests.serve.running import picture

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"name": "vit_xs", "device": "cpu", "recipe": "fp32_sdpa"}
IMAGES, SHARD = 8, 2
PIXELS = Image.MAX_IMAGE_PIXELS  # which a worker sets in its process, here that of the tests
BAD = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of photos, one of them bad, and beside it the boxes to ask for."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "in").mkdir()
    for number in range(IMAGES):
        data = b"no image" if number == BAD else picture(number)
        (folder / "in" / f"{number}.png").write_bytes(data)
    ids = range(IMAGES)
    prompts = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 90, "height": 60} for i in ids],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 30 + i, 30]} for i in ids
        ],
        "categories": [{"id": 1, "name": "block"}],
    }
    (folder / "boxes.json").write_text(json.dumps(prompts))
    return folder


def arguments(photos: Path, out: Path) -> list[str]:
    """The command line of the run, on one device."""
    return [
        *("run", str(photos / "in"), "--out", str(out), "--prompts", str(photos / "boxes.json")),
        *("--device", "cpu", "--recipe", "fp32_sdpa", "--shard-size", str(SHARD)),
    ]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As each worker on a CPU has. With more, sums are made in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def on_one_device(photos, tmp_path_factory) -> dict[str, bytes]:
    """The files of the run in this process."""
    out = tmp_path_factory.mktemp("one")
    assert main(arguments(photos, out)) == 1
    files = result_files(out)
    assert len(files) == IMAGES // SHARD + 2
    return files


def result_files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """A Ray of two CPUs that runs already: its ports, its process, and what joins it has set."""
    folder = tmp_path_factory.mktemp("r")
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-of-32-characters",
    }
    port, client_port = free_ports()
    ports = ["--port", str(port), "--ray-client-server-port", str(client_port)]
    workers = ["--min-worker-port", "0", "--max-worker-port", "0"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *ports),
            *(*workers, "--num-cpus", "2", "--include-dashboard=false"),
            *("--disable-usage-stats", "--temp-dir", str(folder)),
        ],
        env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while not (answers(port) and answers(client_port)):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        yield {"port": port, "client": client_port, "pid": process.pid, "variables": variables}
    finally:
        descendants = ray_processes(process.pid)
        process.kill()
        process.wait(30)
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_ports() -> tuple[int, int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return one.getsockname()[1], two.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


class Run:
    """The command in a process of its own; its events are read as it writes them."""

    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "samfast", *arguments, "--json", "-"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
        )

    def until_shard(self) -> None:
        """Return when a shard is listed."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line)["event"] == "shard":
                return
        raise AssertionError(self.process.communicate()[1])

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """The exit code, the events that were not read yet, and stderr."""
        out, err = self.process.communicate(timeout=200)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.timeout(240)
def test_a_cluster_whose_worker_is_killed_writes_the_files_of_one_device(
    photos, on_one_device, cluster, tmp_path
):
    address = ["--address", f"127.0.0.1:{cluster['port']}", "--workers", "2"]
    run = Run([*arguments(photos, tmp_path / "out"), *address], cluster["variables"])
    run.until_shard()

    def workers() -> list[int]:
        return [p for p, name in ray_processes(cluster["pid"]).items() if "MapWorker" in name]

    wait_until(lambda: len(workers()) == 2)  # on a busy machine the second is still starting
    os.kill(workers()[0], signal.SIGKILL)
    code, events, stderr = run.end()
    assert code == 1, stderr
    assert f"{BAD}.png: not an image" in stderr
    assert events[-1]["event"] == "end"
    assert (events[-1]["images"], events[-1]["failed"]) == (IMAGES - 1, 1)
    numbers = [event["number"] for event in events if event["event"] == "shard"]
    assert len(numbers) == len(set(numbers)) == IMAGES // SHARD - 1
    assert result_files(tmp_path / "out") == on_one_device


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_client_of_a_cluster_writes_the_files_of_one_device(
    photos, on_one_device, cluster, tmp_path
):
    address = ["--address", f"ray://127.0.0.1:{cluster['client']}", "--workers", "1"]
    run = Run([*arguments(photos, tmp_path / "out"), *address], cluster["variables"])
    code, _, stderr = run.end()
    assert code == 1, stderr
    assert result_files(tmp_path / "out") == on_one_device


@pytest.mark.timeout(400)
def test_a_killed_driver_leaves_nothing_and_the_run_goes_on(photos, on_one_device, tmp_path):
    before = listening_beyond_loopback()
    out = tmp_path / "out"
    run = Run([*arguments(photos, out), "--address", "local", "--workers", "2"], {})
    run.until_shard()
    assert listening_beyond_loopback() - before == set()
    processes = ray_processes(run.process.pid)
    run.process.kill()
    run.end()
    # The manifest need not list what was written; the file itself says what it is.
    assert main(arguments(photos, out)) == 1
    assert result_files(out) == on_one_device
    # Two agents of Ray look for its head for a minute; all others end at once.
    agents = [pid for pid, name in processes.items() if "Agent" in name]
    assert len(agents) == 2
    wait_until(lambda: not any(map(alive, processes.keys() - set(agents))))
    for pid in agents:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def everything(photos) -> tuple[Source, RunIdentity]:
    """A run of everything in the photos."""
    source = open_source(str(photos / "in"))
    engine = engine_identity(samfast.load(**MODEL))
    return source, run_identity(engine, Everything({"points_per_side": 1}), source, SHARD)


def test_a_worker_tells_what_ends_the_run(everything, tmp_path):
    source, identity = everything
    destination = Destination(str(tmp_path))
    worker = ShardWorker(MODEL, identity, destination, source.reader, 1, PIXELS)
    gone = source.entries[0]._replace(file=str(tmp_path / "gone.png"))
    (result,) = worker(worker_batch(Source("gone", [gone], source.reader)))["result"]
    error = pickle.loads(result)
    assert isinstance(error, SourceGoneError)
    assert "was listed and is gone" in str(error)
    assert not list(tmp_path.iterdir())


def worker_batch(source: Source) -> dict[str, Any]:
    shard = shard_of(source.entries, 0, SHARD)
    return {"shard": np.array([pickle.dumps((shard, Everything()))], dtype=object)}


def test_a_worker_of_another_model_is_refused(everything, tmp_path):
    source, identity = everything
    other = dict(MODEL, recipe="fp32")
    with pytest.raises(InputError, match="a node of the cluster has the recipe fp32"):
        ShardWorker(other, identity, Destination(str(tmp_path)), source.reader, 1, PIXELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers is for a Ray cluster"),
        (["--address", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
        (["--address", "nowhere"], "nowhere is none of local, auto, HOST:PORT"),
    ],
)
def test_what_does_not_go_together(photos, tmp_path, capsys, options, message):
    assert main([*arguments(photos, tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_the_extra_is_named(photos, tmp_path):
    run = without_ray(*arguments(photos, tmp_path / "out"), "--address", "local")
    assert run.returncode == 2
    assert run.stderr.strip().endswith("needs ray: pip install 'samfast[cluster]'")
