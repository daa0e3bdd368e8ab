"""Measures `samfast serve` under load against the engine alone, in one run on one machine.

    python benchmarks/serve_load.py [--model NAME] [--checkpoint FILE] [--device NAME]
    [--recipe NAME] [--clients N] [--images N] [--client-processes N] [--client-cores N]
    [--http-processes N...] [--seconds S] [--requests N] [--crowd N] [--crowd-seconds S]
    [--rounds N] [--only STEP...] [--store DIR] [--json FILE]

Steps, in this order:

    start       from starting the process to the answer to the first click, upload included
    throughput  N clients click on N images, each again when answered; in turns with the engine
                alone, which decodes the same clicks N at a time and as many at a time as the
                server, also with the masks written as text, and with a server whose batching is off
                (--batch-objects 1 --batch-images 1); with --http-processes also with servers of so
                many of them each, instead of the default number
    lost        the number of requests that --requests asks for, all of which must be answered, each
                with the engine's own mask
    crowd       200 clients at once, some of which are slow and some of which vanish, until the
                store of low-resolution masks is full, and then for --crowd-seconds; the server's
                memory all the while
    store       the time to read an embedding from a store, from the disk and from its cache
    kill        the server is killed (SIGKILL) while it fills a store, and started again

The images are those of SAMFAST_DATA, or random ones. Clients are processes of their own on the same
machine, so on a CPU they take part of what is measured; their share is in the file. With
--client-cores they have the first cores for themselves, and the server and the engine, which are
measured in turns, have the others. On a GPU, with fast answers, several --client-processes keep the
client from being what is measured. A GPU in a minute and a half:

    python benchmarks/serve_load.py --device cuda --recipe fused --only throughput --rounds 1
    --seconds 3 --client-processes 4 [--model vit_b --checkpoint FILE]

Clicks cost the decoder alone, which is the same in all models. Not `--checkpoint random`: its masks
are noise, of forty times as much text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.child_environment import child_environment  # noqa: E402

STEPS = ("start", "throughput", "lost", "crowd", "store", "kill")
CPU_BATCH = 8
"""Objects that the server decodes together on a CPU, if not told otherwise."""

POINTS = 4
"""Different clicks for each image, whose answers the engine gives beforehand."""

Click = tuple[int, int]
Report = dict[str, Any]


class Server:
    """A `samfast serve` of its own process, ready for requests."""

    def __init__(self, args: argparse.Namespace, *more: str) -> None:
        command = [sys.executable, "-m", "samfast", "serve", "--port", "0", "--quiet"]
        for name in ("model", "checkpoint", "device", "recipe"):
            value = getattr(args, name)
            command += [] if value is None else [f"--{name}", str(value)]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, *more],
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        assert self.process.stderr is not None
        lines: list[str] = []
        while (line := self.process.stderr.readline()) and "http://" not in line:
            lines.append(line)
        if "http://" not in line:
            raise SystemExit(f"the server did not start: {''.join(lines)}")
        self.port = int(line.rsplit(":", 1)[1].strip(" /\n"))

    def cpu_seconds(self) -> float:
        """Processor time that it has used (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(120)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


IDLE_SECONDS = 3.0
"""uvicorn closes a connection that is idle for 5 seconds, and a request that is on its way then is
not answered. As clients of HTTP/1.1 should, ours opens another one before that."""


class Connection:
    """A connection of HTTP/1.1 that stays open. It parses no more than it must."""

    def __init__(self, port: int) -> None:
        self._port, self._answered = port, 0.0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        if time.monotonic() - self._answered > IDLE_SECONDS:
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(header.split(b" ", 2)[1])
        length = int(header.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
        answer = await reader.readexactly(length) if length else b""
        self._answered = time.monotonic()
        if b"connection: close" in header:
            self.close()
        return status, answer

    def send_and_leave(self, path: str, body: bytes) -> None:
        """Ask, and close without waiting for the answer."""
        assert self._streams is not None
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._streams[1].write(head.encode() + body)
        self.close()

    def close(self) -> None:
        """Close it; the next request opens a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def photos(count: int) -> list[bytes]:
    """Files of images: those of SAMFAST_DATA, as many as there are, or random ones."""
    folder = os.environ.get("SAMFAST_DATA")
    files = sorted((Path(folder) / "val" / "images").glob("*.jpg")) if folder else []
    contents = [path.read_bytes() for path in files[:count]]
    draw = np.random.default_rng(0)
    while len(contents) < count:
        pixels = draw.integers(0, 256, (30, 40, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        with tempfile.TemporaryFile() as file:
            Image.fromarray(pixels).save(file, "PNG")
            file.seek(0)
            contents.append(file.read())
    return contents


def clicks(files: list[bytes]) -> list[list[Click]]:
    """The clicks of each image, the same in every run."""
    import io

    draw, places = random.Random(0), []
    for data in files:
        width, height = Image.open(io.BytesIO(data)).size
        some = [(draw.randrange(width), draw.randrange(height)) for _ in range(POINTS)]
        places.append(some)
    return places


def body_of(click: Click) -> bytes:
    """A request for one click."""
    return json.dumps({"objects": [{"points": [list(click)], "labels": [1]}]}).encode()


def percentiles(seconds: list[float]) -> Report:
    """Milliseconds: the median, and what 99 of 100 are within."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(share * len(ordered)))] * 1e3, 1)
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))
    }


class Load:
    """Clients that click on images of a server."""

    def __init__(self, port: int, files: list[bytes], places: list[list[Click]]) -> None:
        self.port, self.files, self.places = port, files, places
        self.ids: list[str] = []
        self.latencies: list[float] = []
        self.statuses: dict[str, int] = {}

    async def upload(self) -> None:
        """Send all images, and click on each once, so that all are embedded."""
        connection = Connection(self.port)
        for data in self.files:
            status, answer = await connection.ask("POST", "/v1/images", data, "image/jpeg")
            assert status == 201, answer
            self.ids.append(json.loads(answer)["id"])
        for number, places in enumerate(self.places):
            status, answer = await connection.ask("POST", self.path(number), body_of(places[0]))
            assert status == 200, answer
        connection.close()

    def path(self, image: int) -> str:
        """Where clicks on an image go."""
        return f"/v1/images/{self.ids[image]}/predict"

    async def run(
        self,
        clients: int | range,
        more: Callable[[], bool],
        judge: Callable[[int, int, bytes], None] | None = None,
    ) -> float:
        """Let clients click until there is no more to do; returns the seconds.

        clients  how many, or the numbers of those of this process
        """
        self.latencies.clear()
        self.statuses.clear()
        start = time.perf_counter()

        async def client(number: int) -> None:
            connection, turn = Connection(self.port), 0
            image = number % len(self.ids)
            while more():
                place = turn % POINTS
                asked = time.perf_counter()
                status, answer = await connection.ask(
                    "POST", self.path(image), body_of(self.places[image][place])
                )
                self.latencies.append(time.perf_counter() - asked)
                self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1
                if judge is not None and status == 200:
                    judge(image, place, answer)
                turn += 1
            connection.close()

        numbers = range(clients) if isinstance(clients, int) else clients
        await asyncio.gather(*(client(number) for number in numbers))
        return time.perf_counter() - start


@dataclass(frozen=True)
class Share:
    """What one process of clients does: those of these numbers, for so long or so many requests.

    ids     of the images on the server
    wanted  COCO's text of every mask, to be compared; None: nothing is compared
    cores   that the process may use; None: all
    """

    port: int
    ids: list[str]
    places: list[list[Click]]
    clients: range
    seconds: float | None
    requests: int
    wanted: list[list[list[str]]] | None
    cores: frozenset[int] | None


@dataclass
class Clicked:
    """What clients have seen: seconds of each request, counts of statuses, masks compared.

    seconds      from the first request to the last answer
    cpu_seconds  of the clients' processes
    """

    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    masks: int = 0
    equal: int = 0
    most_pixels: int = 0

    def add(self, other: Clicked) -> None:
        """Count what other clients have seen at the same time."""
        self.latencies += other.latencies
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.masks += other.masks
        self.equal += other.equal
        self.most_pixels = max(self.most_pixels, other.most_pixels)

    def report_masks(self) -> Report:
        """What was compared."""
        return {
            "masks": self.masks,
            "equal_to_the_bit": self.equal,
            "most_pixels_that_differ": self.most_pixels,
        }


def click_in_process(share: Share, pipe: Any) -> None:
    """A process of clients: it says that it is there, waits for the start, and sends a Clicked."""
    if share.cores is not None:
        os.sched_setaffinity(0, share.cores)
    load = Load(share.port, [], share.places)
    load.ids = share.ids
    judge = None if share.wanted is None else Judge(share.wanted)
    left = share.requests
    pipe.send(None)
    pipe.recv()
    until = None if share.seconds is None else _until(share.seconds)

    def more() -> bool:
        nonlocal left
        left -= 1
        return left >= 0 if until is None else until()

    used = _own_seconds()
    seconds = asyncio.run(load.run(share.clients, more, judge))
    clicked = Clicked(load.latencies, load.statuses, seconds, _own_seconds() - used)
    if judge is not None:
        clicked.masks, clicked.equal = judge.masks, judge.equal
        clicked.most_pixels = judge.most_pixels
    pipe.send(clicked)


def click(
    args: argparse.Namespace,
    load: Load,
    clients: int,
    *,
    seconds: float | None = None,
    requests: int = 0,
    wanted: list[list[list[str]]] | None = None,
) -> Clicked:
    """Let clients click for some seconds, or so many requests, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    count = min(args.client_processes, clients)
    cores = frozenset(args.cores[: args.client_cores]) or None
    running = []
    for number in range(count):
        ours, theirs = context.Pipe()
        more = requests // count + (number < requests % count)
        numbers = range(number, clients, count)
        share = Share(load.port, load.ids, load.places, numbers, seconds, more, wanted, cores)
        process = context.Process(target=click_in_process, args=(share, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    for _, pipe in running:
        pipe.recv()
    for _, pipe in running:
        pipe.send(None)
    clicked = Clicked()
    for process, pipe in running:
        clicked.add(pipe.recv())
        process.join()
    return clicked


def prompts_of(places: list[Click]) -> list[Any]:
    """One click on each image."""
    from samfast.types import Prompts

    return [Prompts(points=[[list(click)]], labels=[[1]]) for click in places]


class Engine:
    """The engine alone, on the same images and clicks."""

    def __init__(self, args: argparse.Namespace, files: list[bytes]) -> None:
        import samfast
        from samfast.images import load_bytes
        from samfast.serve.device_tasks import together
        from samfast.serve.embedding_store import EmbeddingStore, feature_key
        from samfast.serve.image_store import content_id
        from samfast.serve.store_backends import backend_of

        self.sam = samfast.load(
            args.model, checkpoint=args.checkpoint, device=args.device, recipe=args.recipe
        )
        store = EmbeddingStore(backend_of(args.store), feature_key(self.sam), 1 << 40)
        each = []
        for data in files:
            image_id = content_id(data)
            embedding = store.read(image_id)
            if embedding is None:
                embedding = self.sam.embed([load_bytes(data, "image")]).cpu()
                store.write(image_id, embedding)
            each.append(embedding.to(self.sam.device))
        self.embeddings = together(each)

    def predict_rle(self, embeddings: Any, places: list[Click]) -> Any:
        """One click on each image, in one call, with masks as text."""
        return self.sam.predict_rle(embeddings, prompts_of(places))

    def predict(self, embeddings: Any, places: list[Click]) -> Any:
        """One click on each image, in one call, with masks on the device."""
        results = self.sam.predict(embeddings, prompts_of(places))
        if self.sam.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.sam.device)
        return results

    def rate(
        self, places: list[list[Click]], seconds: float, together: int, *, to_text: bool = False
    ) -> tuple[float, float]:
        """Clicks a second, so many images decoded at a time, and the processor time of one.

        to_text  masks are written as COCO's text on the host, as every answer of the server is;
                 otherwise they stay on the device
        """
        answer = self.predict_rle if to_text else self.predict
        starts = range(0, len(places), together)
        parts = [(self.embeddings[i : i + together], places[i : i + together]) for i in starts]

        def once(turn: int) -> None:
            for embeddings, some in parts:
                answer(embeddings, [each[turn % POINTS] for each in some])

        once(0)
        used = _own_seconds()
        start, turns = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            once(turns)
            turns += 1
        count = turns * len(places)
        return count / (time.perf_counter() - start), (_own_seconds() - used) / count

    def counts(self, places: list[list[Click]]) -> list[list[list[str]]]:
        """For each image and click the three masks as COCO's text, each image predicted alone."""
        from samfast import coco_rle
        from samfast.types import Prompts

        counts = []
        for image, each in enumerate(places):
            embedding = self.embeddings[image]
            answers = []
            for click in each:
                prompt = Prompts(points=[[list(click)]], labels=[[1]])
                masks = self.sam.predict(embedding, [prompt])[0].cpu().masks[0]
                answers.append([coco_rle.encode(mask)["counts"] for mask in masks.numpy()])
            counts.append(answers)
        return counts


class Judge:
    """Counts how many masks are the engine's to the bit, and the pixels of others that differ."""

    def __init__(self, wanted: list[list[list[str]]]) -> None:
        from samfast import coco_rle

        self._wanted, self._decode = wanted, coco_rle.decode
        self.masks = self.equal = self.most_pixels = 0

    def __call__(self, image: int, place: int, answer: bytes) -> None:
        masks = json.loads(answer)["objects"][0]["masks"]
        for mask, counts in zip(masks, self._wanted[image][place], strict=True):
            self.masks += 1
            segmentation = mask["segmentation"]
            if segmentation["counts"] == counts:
                self.equal += 1
                continue
            one = self._decode(segmentation)
            other = self._decode({"size": segmentation["size"], "counts": counts})
            self.most_pixels = max(self.most_pixels, int(np.count_nonzero(one ^ other)))


def measure_start(args: argparse.Namespace, files: list[bytes]) -> Report:
    """Seconds from starting the process to its first answer."""
    seconds, used = [], []
    for _ in range(args.rounds):
        server = Server(args)

        async def first(port: int = server.port) -> None:
            load = Load(port, files[:1], clicks(files[:1]))
            await load.upload()

        asyncio.run(first())
        seconds.append(time.perf_counter() - server.started)
        used.append(server.cpu_seconds())
        server.stop()
    return {
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "first_click_seconds": [round(each, 2) for each in seconds],
        "cpu_seconds": [round(each, 2) for each in used],
    }


def measure_throughput(args: argparse.Namespace, files: list[bytes]) -> Report:
    """Clicks a second of the engine, the server, and the server without batching, in turns."""
    places, engine = clicks(files), Engine(args, files)
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    batch = CPU_BATCH if args.device == "cpu" else args.clients
    batches = sorted({args.clients, min(batch, args.clients)})
    client_cores = 0.0

    def note(name: str, rate: float, seconds: float) -> None:
        rates.setdefault(name, []).append(rate)
        cpu.setdefault(name, []).append(seconds)

    def engine_alone() -> None:
        for together in batches:
            note(f"engine_by_{together}", *engine.rate(places, args.seconds, together))
            if (
                together == min(batch, args.clients)
                and len(rates.get("with_text", ())) < args.rounds
            ):
                note("with_text", *engine.rate(places, args.seconds, together, to_text=True))

    for _ in range(args.rounds):
        engine_alone()
        batched = ("--batch-objects", str(batch))
        for name, more in (
            ("server", batched),
            *(
                (f"server_{count}_http_processes", (*batched, "--http-processes", str(count)))
                for count in args.http_processes
            ),
            ("server_unbatched", ("--batch-objects", "1", "--batch-images", "1")),
        ):
            server = Server(args, "--store", args.store, *more)
            load = Load(server.port, files, places)
            asyncio.run(load.upload())
            click(args, load, args.clients, seconds=min(1.0, args.seconds))
            before = server.cpu_seconds()
            clicked = click(args, load, args.clients, seconds=args.seconds)
            count = len(clicked.latencies)
            note(name, count / clicked.seconds, (server.cpu_seconds() - before) / count)
            latencies.setdefault(name, []).extend(clicked.latencies)
            client_cores = max(client_cores, clicked.cpu_seconds / clicked.seconds)
            assert set(clicked.statuses) == {"200"}, clicked.statuses
            server.stop()
    engine_alone()
    medians = {name: statistics.median(each) for name, each in rates.items()}
    used = {name: statistics.median(each) for name, each in cpu.items()}
    # The server is held against the engine at its best, whatever it decodes at a time.
    best = max((name for name in medians if name.startswith("engine")), key=medians.__getitem__)
    report: Report = {
        "clients": args.clients,
        "images": len(files),
        "server_batch": batch,
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "clicks_per_second": {name: [round(x, 2) for x in each] for name, each in rates.items()},
        "server_of_engine": round(medians["server"] / medians[best], 3),
        # The same with the masks' text, without which the server has no answer.
        "server_of_engine_with_text": round(medians["server"] / medians["with_text"], 3),
        "batching_gain": round(medians["server"] / medians["server_unbatched"], 2),
        # Of use on a CPU that others share, where rates say more of them: the server's process
        # that has the model against the engine's.
        "server_of_engine_by_cpu_time": _ratio(used[best], used["server"]),
        "batching_gain_by_cpu_time": _ratio(used["server_unbatched"], used["server"]),
        "cpu_ms_per_click": {name: [round(x * 1e3, 2) for x in each] for name, each in cpu.items()},
        "latency": {name: percentiles(each) for name, each in latencies.items()},
        "client_processes": args.client_processes,
        "client_cores_used": round(client_cores, 3),
        "cores": cores_of(args),
    }
    print(
        f"SERVE {args.model} on {args.device}: {medians['server']:.1f} clicks/s, "
        f"{report['server_of_engine']:.2f} of the engine's {medians[best]:.1f} ({best}), "
        f"{report['server_of_engine_with_text']:.2f} of {medians['with_text']:.1f} with text, "
        f"{report['batching_gain']:.1f}x of unbatched {medians['server_unbatched']:.1f}; "
        f"p50 {report['latency']['server']['p50_ms']} ms, "
        f"p99 {report['latency']['server']['p99_ms']} ms; "
        f"clients used {client_cores:.2f} cores",
        flush=True,
    )
    return report


def cores_of(args: argparse.Namespace) -> Report:
    """How many cores the clients have for themselves, and the server and the engine in turns; 0:
    they share all.
    """
    return {"client": args.client_cores, "all": len(args.cores)}


def _ratio(one: float, other: float) -> float | None:
    """None where a system does not tell its processes' time."""
    return round(one / other, 3) if other else None


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_lost(args: argparse.Namespace, files: list[bytes]) -> Report:
    """All requests of many, each answered with the engine's own masks."""
    places = clicks(files)
    wanted = Engine(args, files).counts(places)
    server = Server(args, "--store", args.store)
    load = Load(server.port, files, places)
    asyncio.run(load.upload())
    clicked = click(args, load, args.clients, requests=args.requests, wanted=wanted)
    code = server.stop()
    return {
        "requests": args.requests,
        "clients": args.clients,
        "answers": clicked.statuses,
        "seconds": round(clicked.seconds, 1),
        **percentiles(clicked.latencies),
        **clicked.report_masks(),
        "exit_code_after_sigterm": code,
    }


class Memory:
    """A server's memory over time, beside how many requests it had answered."""

    def __init__(self, server: Server) -> None:
        self._server, self._start = server, time.perf_counter()
        self.series: list[dict[str, float]] = []

    async def look(self) -> None:
        """Note it, and how many requests are answered."""
        connection = Connection(self._server.port)
        text = (await connection.ask("GET", "/metrics"))[1].decode()
        connection.close()
        # Linux's own; systems that imitate it have no such file.
        rollup = Path(f"/proc/{self._server.process.pid}/smaps_rollup").read_text()
        sizes = {line.split(":")[0]: line.split()[1] for line in rollup.splitlines()[1:]}
        clicks = 'samfast_requests_total{route="/v1/images/{id}/predict"'
        self.series.append(
            {
                "seconds": round(time.perf_counter() - self._start, 1),
                "answered": sum(metric(text, clicks)),
                "memory_mib": int(sizes["Rss"]) >> 10,
                "anonymous_mib": int(sizes["Anonymous"]) >> 10,
                "masks_mib": round(sum(metric(text, "samfast_mask_bytes")) / (1 << 20), 1),
                "embeddings_mib": round(
                    sum(metric(text, 'samfast_embedding_bytes{tier="host"}')) / (1 << 20), 1
                ),
                "dropped": sum(metric(text, "samfast_dropped_jobs_total")),
            }
        )

    def report(self, since: int) -> Report:
        """The series, and whether it is flat from that number on."""
        flat = self.series[since:]
        quarter = max(1, len(flat) // 4)
        sizes = [each["memory_mib"] for each in flat]
        answered = [each["answered"] for each in flat]
        parts = [sizes[i * quarter : (i + 1) * quarter] or sizes for i in range(4)]

        def slope(of: slice) -> float:
            several = len(set(answered[of])) > 1
            rise = np.polyfit(answered[of], sizes[of], 1)[0] if several else 0.0
            return round(float(rise) * 1000, 2)

        return {
            "full_after_seconds": flat[0]["seconds"],
            "answered_when_full": answered[-1] - answered[0],
            "first_quarter_mean_mib": round(statistics.mean(sizes[:quarter]), 1),
            "last_quarter_mean_mib": round(statistics.mean(sizes[-quarter:]), 1),
            "quarter_means_mib": [round(statistics.mean(each), 1) for each in parts],
            "least_mib": min(sizes),
            "most_mib": max(sizes),
            "slope_mib_per_1000_requests": slope(slice(None)),
            "second_half_slope_mib_per_1000_requests": slope(slice(len(flat) // 2, None)),
            "series": self.series,
        }


def metric(text: str, name: str) -> list[float]:
    """The values of the series of /metrics that begin with this."""
    return [float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith(name)]


def measure_crowd(args: argparse.Namespace, files: list[bytes]) -> Report:
    """Many clients at once, a tenth of them slow and a tenth vanishing."""
    places = clicks(files)
    server = Server(args, "--store", args.store)
    load = Load(server.port, files, places)
    vanished = slow = 0
    seen = Clicked()
    memory = Memory(server)

    async def work() -> int:
        nonlocal vanished, slow
        await load.upload()
        stop = asyncio.Event()

        async def vanishing(number: int) -> None:
            nonlocal vanished
            connection = Connection(server.port)
            while not stop.is_set():
                await connection.ask("GET", "/healthz")
                image = number % len(files)
                connection.send_and_leave(load.path(image), body_of(places[image][0]))
                vanished += 1
                await asyncio.sleep(0.2)

        async def slow_one(number: int) -> None:
            nonlocal slow
            while not stop.is_set():
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                body = body_of(places[number % len(files)][0])
                head = (
                    f"POST {load.path(number % len(files))} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                ).encode()
                sent = head + body
                for place in range(len(sent)):
                    if stop.is_set():
                        break
                    writer.write(sent[place : place + 1])
                    await asyncio.sleep(0.05)
                slow += 1
                writer.close()

        async def watch(seconds: float) -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                await memory.look()
                await asyncio.sleep(min(5.0, max(0.1, seconds / 40)))

        odd = [vanishing(i) for i in range(args.crowd // 10)]
        odd += [slow_one(i) for i in range(args.crowd // 10)]
        others = [asyncio.ensure_future(each) for each in odd]
        count = args.crowd - len(others)
        # What is kept on purpose is bounded; whether more is kept shows when that is full.
        before = -1.0
        await memory.look()
        while memory.series[-1]["masks_mib"] > before:
            before = memory.series[-1]["masks_mib"]
            await asyncio.to_thread(click, args, load, count, seconds=args.seconds)
            await memory.look()
        full = len(memory.series) - 1
        watching = asyncio.ensure_future(watch(args.crowd_seconds))
        seen.add(await asyncio.to_thread(click, args, load, count, seconds=args.crowd_seconds))
        await watching
        stop.set()
        await asyncio.gather(*others)
        await memory.look()
        return full

    full = asyncio.run(work())
    server.stop()
    return {
        "clients": args.crowd,
        "answers": seen.statuses,
        **percentiles(seen.latencies),
        "vanished": vanished,
        "slow": slow,
        "dropped_jobs": memory.series[-1]["dropped"],
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "memory": memory.report(full),
    }


def _until(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


def measure_store(args: argparse.Namespace, files: list[bytes]) -> Report:
    """Milliseconds to read embeddings from a folder that another store has written."""
    from samfast.serve.embedding_store import EmbeddingStore, feature_key
    from samfast.serve.store_backends import backend_of

    engine = Engine(args, files[:8])
    key = feature_key(engine.sam)
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(backend_of(folder), key, 1 << 40)
        for number in range(len(engine.embeddings)):
            store.write(f"{number:064x}", engine.embeddings[number].cpu())
        again = EmbeddingStore(backend_of(folder), key, 1 << 40)
        files_there = sorted(Path(folder).rglob("*.safetensors"))
        seconds: dict[str, list[float]] = {"cached": [], "from_disk": []}
        used: list[float] = []
        for kind, times in seconds.items():
            for turn in range(200):
                if kind == "from_disk":
                    _forget(files_there[turn % len(files_there)])
                start, before = time.perf_counter(), time.thread_time()
                embedding = again.read(f"{turn % len(engine.embeddings):064x}")
                times.append(time.perf_counter() - start)
                used.append(time.thread_time() - before)
                assert embedding is not None
        size = again.bytes // len(again)
    return {
        "bytes": size,
        "load_average": [round(each, 1) for each in os.getloadavg()],
        **{kind: percentiles(times) for kind, times in seconds.items()},
        "cpu_time": percentiles(used),
    }


def _forget(path: Path) -> None:
    """Have the system drop a file from its cache, so that the disk is read (Linux)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_kill(args: argparse.Namespace, files: list[bytes]) -> Report:
    """SIGKILL while a store is filled; every file must be whole, and the server start again."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args, "--store", folder)

        async def fill(port: int = server.port) -> None:
            connection = Connection(port)
            for data in files:
                await connection.ask("POST", "/v1/images", data, "image/jpeg")

        asyncio.run(fill())
        while len(list(Path(folder).rglob("*.safetensors"))) < min(5, len(files) // 2):
            time.sleep(0.005)
        server.stop(signal.SIGKILL)
        kept = [path.stem for path in Path(folder).rglob("*.safetensors")]
        again = Server(args, "--store", folder)

        async def click(port: int = again.port) -> dict[str, int]:
            connection, answers = Connection(port), {"200": 0}
            for image_id in kept:
                status, _ = await connection.ask(
                    "POST", f"/v1/images/{image_id}/predict", body_of((3, 3))
                )
                answers[str(status)] = answers.get(str(status), 0) + 1
            return answers

        answers = asyncio.run(click())
        again.stop()
        return {"files_at_the_kill": len(kept), "clicks_after_the_restart": answers}


def main() -> None:
    """Run the steps and print or write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_xs")
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, help="default: one a client")
    parser.add_argument("--client-processes", type=int, default=1, metavar="N")
    parser.add_argument(
        "--client-cores",
        type=int,
        default=0,
        metavar="N",
        help="the first N cores are the clients' alone, the others the server's and the engine's; "
        "0: all share all (default)",
    )
    parser.add_argument("--http-processes", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--crowd", type=int, default=200)
    parser.add_argument("--crowd-seconds", type=float, default=300.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--store", help="a folder for embeddings, kept for later runs")
    args = parser.parse_args()
    args.cores = sorted(os.sched_getaffinity(0))
    if args.client_cores:
        # Before torch is imported, which then takes as many threads; servers inherit it.
        os.sched_setaffinity(0, args.cores[args.client_cores :])
    from samfast.bench.environment import stamp

    kept = contextlib.nullcontext(args.store) if args.store else tempfile.TemporaryDirectory()
    with kept as args.store:
        run(args, stamp(args.device))


def run(args: argparse.Namespace, environment: Report) -> None:
    """Run the steps in order."""
    files = photos(args.images or args.clients)
    report: Report = {
        "what": f"samfast serve, {args.model} on {args.device}, recipe {args.recipe}",
        "environment": environment,
    }
    steps: dict[str, Callable[[argparse.Namespace, list[bytes]], Report]] = {
        "start": measure_start,
        "throughput": measure_throughput,
        "lost": measure_lost,
        "crowd": measure_crowd,
        "store": measure_store,
        "kill": measure_kill,
    }
    for name in args.only:
        report[name] = steps[name](args, files)
        print(json.dumps({name: report[name]}), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
