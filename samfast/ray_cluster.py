"""A connection to Ray: one that is started here and reached from nowhere else, or one that runs.

Needs the extra `cluster`. The processes that Ray starts import samfast themselves.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from samfast.errors import InputError, MissingExtraError, UsageError

LOCAL = "local"
"""The address of a Ray that is started on this machine, for one command only."""

AUTO = "auto"
"""The address of the Ray that runs on this machine, as `ray start` has started it."""

CONNECT_SECONDS = 10.0
"""In which a cluster's port must answer."""

_PRIVATE = {
    # Ray reports usage to its makers unless told otherwise.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's name for what makes a machine's Ray listen on its loopback address only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Each line of a log is shown, and as it was written.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # Ray Data has Ray's core complain of its own actors (ray-project/ray, issue 57733).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Seconds for which Ray's processes seek a head that is gone, as when we are killed.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""What a Ray that is started here reads, in part when it is imported."""


@contextmanager
def ray_cluster(
    address: str, purpose: str, *, num_cpus: int | None = None, show_logs: bool = False
) -> Iterator[Any]:
    """Within it, Ray is connected; the module `ray`.

    address   `LOCAL`, `AUTO`, "host:port", or "ray://host:port" of a Ray client server
    purpose   names who asks, in messages
    num_cpus  that a local Ray has; None: those of the machine
    show_logs print what other processes print, on stderr

    A Ray to which this process is connected already is used, and stays connected. A local one
    listens on the loopback address only, asks each connection for a token of its own, and ends with
    the block. Raises MissingExtraError without Ray, InputError where none answers, UsageError where
    the process has imported Ray so that a local one would listen on every address.

    >>> with ray_cluster(LOCAL, "my program") as ray:
    ...     print(ray.cluster_resources())
    """
    with _environment(_PRIVATE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, address):
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                f"{purpose} needs {error.name}: pip install 'samfast[cluster]'"
            ) from error
        if ray.is_initialized():
            yield ray
            return
        # Ray leaves the folder of its sockets, logs and spilled objects behind.
        folder = TemporaryDirectory(prefix="samfast-ray-", ignore_cleanup_errors=True)
        with folder, _prints_on_stderr():
            with _signal_handlers_kept():
                _connect(ray, address, num_cpus, folder.name, show_logs)
            try:
                yield ray
            finally:
                ray.shutdown()


def _connect(ray: Any, address: str, num_cpus: int | None, folder: str, show_logs: bool) -> None:
    """Connect; `folder` is for the files of a Ray that is started."""
    options: dict[str, Any] = {"log_to_driver": show_logs, "logging_level": logging.WARNING}
    if address == LOCAL:
        from ray._private import ray_constants

        if ray_constants.ENABLE_RAY_CLUSTER:
            raise UsageError(
                "Ray was imported before, and would listen on every address of this machine; call "
                "ray.init() yourself first, or import samfast.ray_cluster before Ray"
            )
        options |= {"include_dashboard": False, "num_cpus": num_cpus, "_temp_dir": folder}
    elif address != AUTO:
        _check_reachable(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(f"no Ray answers at {address} ({first})") from error


def _check_reachable(address: str) -> None:
    """InputError unless something listens there: Ray itself tries for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        raise InputError(f"{address} is none of {LOCAL}, {AUTO}, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"no Ray answers at {address} ({error.strerror or error})") from error


@contextmanager
def _environment(private: Mapping[str, str], address: str) -> Iterator[None]:
    """Within it, the process and those it starts have the variables for a Ray at the address."""
    wanted = private if address == LOCAL else {"RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _prints_on_stderr() -> Iterator[None]:
    """Ray prints on stdout that a worker has died; stdout is for results."""
    worker: Any = importlib.import_module("ray._private.worker")
    show = worker.print_to_stdstream

    def on_stderr(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        show({**data, "is_err": True}, ignore_prefix)

    worker.print_to_stdstream = on_stderr
    try:
        yield
    finally:
        worker.print_to_stdstream = show


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM and others, and aborts the process at them; afterwards they are ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
