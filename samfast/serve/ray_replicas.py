"""`samfast serve --ray`: the application of `create_app` on Ray Serve, in several replicas.

    image_owner.py          to which replica an image belongs
    image_router.py         the same for Ray's proxies, which hand requests on
    replicated_service.py   a service that hands on what belongs to another

Each replica is a process with an engine and a batcher of its own. Needs the extra `cluster`.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError

import samfast
from samfast.errors import InputError
from samfast.serve.app import create_app
from samfast.serve.json_log import logs_on_stderr
from samfast.serve.problems import ProblemError
from samfast.serve.replicated_service import ReplicatedService
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

APP = "samfast"
DEPLOYMENT = "replicas"
"""What Ray Serve calls the application and its only deployment."""

CALL_ATTEMPTS = 3
"""How often a call is sent when the replica that had it has died."""

PORT_SECONDS = 30.0
"""How long the port may take to answer when the replicas are ready."""


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each has.

    min_replicas, max_replicas   Ray Serve starts more, and ends some, by the requests that wait
    target_requests              for each replica, of those that wait or are answered
    num_gpus, num_cpus           of each replica
    """

    min_replicas: int
    max_replicas: int
    target_requests: float
    num_gpus: int
    num_cpus: int


class RayPeers:
    """The replicas of this application: the calls of `replicated_service.Peers`."""

    def __init__(self) -> None:
        self._found: Any = None

    @property
    def _handle(self) -> Any:
        if self._found is None:  # the application is not there yet when the replica is made
            self._found = serve.get_deployment_handle(DEPLOYMENT, APP)
        return self._found

    async def call(self, image_id: str, method: str, *args: Any, **options: Any) -> Any:
        """The result of a method of the image's owner; another owner is asked if that one dies."""
        owner = self._handle.options(method_name="answer", session_id=image_id)
        for attempt in range(CALL_ATTEMPTS):
            try:
                return _value(await owner.remote(method, args, options))
            except RayActorError:
                if attempt == CALL_ATTEMPTS - 1:
                    break
        raise _lost()

    async def stream(
        self, image_id: str, method: str, *args: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """What a generator of the image's owner yields; ProblemError 503 if the owner dies."""
        owner = self._handle.options(method_name="stream", stream=True, session_id=image_id)
        answers = owner.remote(method, args, options)
        try:
            async for each in answers:
                yield _value(each)
        except RayActorError:
            raise _lost() from None
        finally:
            answers.cancel()

    async def call_all(self, method: str, *args: Any) -> Mapping[str, Any]:
        """By each replica's name, the result of its method; replicas that die have none."""
        results = await self._handle.broadcast("named_answer", method, args).results_async(
            return_exceptions=True
        )
        named: dict[str, Any] = {}
        for each in results:
            if isinstance(each, BaseException):
                if not isinstance(each, RayActorError):
                    raise each
                continue
            name, answer = each
            named[name] = answer.problem() if isinstance(answer, _Problem) else answer
        return named


def _lost() -> ProblemError:
    return ProblemError(503, "replica_lost", "the replica has ended; try again", retry_after=1)


@dataclass(frozen=True)
class _Problem:
    """A ProblemError on its way. Ray would log an exception as a failure, with its traceback."""

    status: int
    code: str
    message: str
    retry_after: float | None

    def problem(self) -> ProblemError:
        return ProblemError(self.status, self.code, self.message, retry_after=self.retry_after)


def _packed(error: ProblemError) -> _Problem:
    return _Problem(error.status, error.code, str(error), error.retry_after)


def _value(answer: Any) -> Any:
    """The answer of a replica; its ProblemError is raised."""
    if isinstance(answer, _Problem):
        raise answer.problem()
    return answer


class Replica:
    """A replica: the model, its service, and the application around it.

    model          the arguments of `samfast.load`
    loopback_only  let this process listen on this machine's own address only
    log_level      of the replica's log
    """

    # Ray Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self, model: Mapping[str, Any], settings: Settings, loopback_only: bool, log_level: int
    ) -> None:
        if loopback_only:
            _listen_on_loopback()
        # Ends with the process.
        self._log = ExitStack()
        self._log.enter_context(logs_on_stderr(log_level))
        self._settings = settings
        sam = await asyncio.to_thread(samfast.load, **model)
        self._service = ReplicatedService(sam, settings, RayPeers())
        await self._service.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve calls for the application, after the constructor."""
        return create_app(self._service, self._settings, self._settings.wires)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if self._service.failed:
            raise RuntimeError("the model does not run; see the log")

    async def answer(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The result of a method of the service, or its problem, as the image's owner."""
        try:
            return await getattr(SegmentationService, method)(self._service, *args, **options)
        except ProblemError as error:
            return _packed(error)

    async def named_answer(self, method: str, args: tuple[Any, ...]) -> tuple[str, Any]:
        """As `answer`, with this replica's name."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, await self.answer(method, args, {})

    async def stream(
        self, method: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """What a method of the service yields, or last its problem, as the image's owner."""
        lines = getattr(SegmentationService, method)(self._service, *args, **options)
        try:
            async with aclosing(lines):
                async for line in lines:
                    yield line
        except ProblemError as error:
            yield _packed(error)


def _listen_on_loopback() -> None:
    """Bind what Ray Serve opens next in this process to the loopback address.

    A replica has a gRPC server, which unpickles what it is sent, on all addresses of its machine;
    there is no setting for it.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        port: int = add_port(server, f"127.0.0.1:{address.rpartition(':')[2]}")
        return port

    replica.add_port_to_grpc_server = on_loopback


@contextmanager
def replicas_running(
    model: Mapping[str, Any], settings: Settings, scale: Scale, *, one_machine: bool, log_level: int
) -> Iterator[str]:
    """Within it, the replicas answer at the settings' host and port; their address.

    one_machine  the cluster is this machine alone, and private. Otherwise each node listens

    Ray must be connected. Raises InputError if the replicas cannot start, or the port is not ours.
    """
    port = settings.port or _free_port(settings.host)
    was_running = bool(serve.status().proxies)
    serve.start(
        proxy_location="HeadOnly" if one_machine else "EveryNode",
        http_options={"host": settings.host, "port": port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    replicas: Any = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        ray_actor_options={"num_gpus": scale.num_gpus, "num_cpus": scale.num_cpus},
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_requests,
        },
        # The replica refuses with 429 what is too much. Calls of peers come on top of its own.
        max_ongoing_requests=4 * settings.max_requests,
        graceful_shutdown_timeout_s=settings.drain_seconds + 5,
        max_constructor_retry_count=1,
        request_router_config={"request_router_class": "samfast.serve.image_router:ImageRouter"},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    try:
        try:
            application = replicas.bind(model, settings, one_machine, log_level)
            serve.run(application, name=APP, route_prefix="/")
        except (RuntimeError, RayError) as error:
            raise InputError(f"the replicas could not be started: {error}") from error
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{port}/"
        _wait_until_open(address)
        yield address
    finally:
        if was_running or one_machine:  # which ends as a whole
            serve.delete(APP)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as free:
        port: int = free.getsockname()[1]
    return port


def _wait_until_open(address: str) -> None:
    """Return when the port answers for a replica; InputError if it does not.

    Ray Serve listens where it was told first: one that runs already keeps its own address.
    """
    end = time.monotonic() + PORT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                raise InputError(
                    f"{address} does not answer ({error}). If Ray Serve runs in this cluster "
                    "already, give the --host and --port that it was started with"
                ) from error
        time.sleep(0.1)
