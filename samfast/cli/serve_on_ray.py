"""`samfast serve --ray`: from the options to replicas that answer until a signal asks to end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from samfast.cli.common_options import positive_int
from samfast.cli.console import CommandLineError, Console
from samfast.cli.ray_options import model_arguments
from samfast.errors import MissingExtraError
from samfast.ray_cluster import LOCAL, ray_cluster

if TYPE_CHECKING:
    from samfast.serve.ray_replicas import Scale
    from samfast.serve.settings import Settings

CPU_REPLICAS = 2
"""The most replicas without GPUs, unless --replicas says otherwise."""

STATEFUL_WIRES = ("roboflow",)
"""Wires that remember names in their process, which another replica does not know."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --ray and --replicas."""
    group = parser.add_argument_group("several GPUs or machines, with Ray Serve")
    group.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="answer with several replicas, each on a GPU, which share --store. Without ADDRESS on "
        "this machine; auto, HOST:PORT or ray://HOST:PORT: in the Ray cluster that runs there",
    )
    group.add_argument(
        "--replicas",
        type=replica_range,
        metavar="MIN:MAX",
        help="how many, or between which numbers by what there is to do (default: from 1 to the "
        f"cluster's GPUs; without GPUs from 1 to {CPU_REPLICAS})",
    )


def replica_range(text: str) -> tuple[int, int]:
    """For argparse: "2" or "1:4" as the least and the most."""
    least, colon, most = text.partition(":")
    low = int(positive_int(least))
    high = int(positive_int(most)) if colon else low
    if high < low:
        raise argparse.ArgumentTypeError(f"{text!r}: the second number is less than the first")
    return low, high


def run_on_ray(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Serve until a signal asks to end; 0.

    Raises CommandLineError for options that do not go with replicas.
    """
    if settings.store is None:
        raise CommandLineError(
            "--ray needs --store: through it a replica has the embeddings of one that has ended"
        )
    for name in settings.wires:
        if name in STATEFUL_WIRES:
            raise CommandLineError(
                f"--wire {name} does not go with --ray: it keeps names of images in one process"
            )
    level = logging.WARNING if args.quiet else logging.INFO
    with ray_cluster(args.ray, "samfast serve --ray", show_logs=True) as ray:
        try:
            from samfast.serve.ray_replicas import replicas_running
        except ImportError as error:
            raise MissingExtraError(
                f"samfast serve --ray needs {error.name}: pip install 'samfast[cluster,serve]'"
            ) from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = args.device or ("cuda" if gpus else "cpu")
        scale = _scale(args, settings, device, gpus, int(ray.cluster_resources().get("CPU", 1)))
        with replicas_running(
            model_arguments(args, device),
            _absolute(settings),
            scale,
            one_machine=args.ray == LOCAL,
            log_level=level,
        ) as address:
            console.warn(
                f"{args.model or args.checkpoint or 'vit_xs'}, {scale.min_replicas} to "
                f"{scale.max_replicas} replicas on {device}, at {address}"
            )
            _wait_for_signal()
    return 0


def _wait_for_signal() -> None:
    """Return at Ctrl-C, and at SIGTERM and SIGHUP, which `main` raises as it."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _scale(
    args: argparse.Namespace, settings: Settings, device: str, gpus: int, cpus: int
) -> Scale:
    from samfast.serve.ray_replicas import Scale

    on_gpu = not device.startswith("cpu")
    if on_gpu and not gpus:
        raise CommandLineError(f"--device {device}: Ray knows of no GPU (see ray status)")
    least, most = args.replicas or (1, gpus if on_gpu else CPU_REPLICAS)
    resource, there = ("GPUs", gpus) if on_gpu else ("CPUs", cpus)
    if args.ray == LOCAL and least > there:
        raise CommandLineError(f"--replicas {least}: there are {there} {resource}")
    batch = settings.batch_objects or (64 if on_gpu else 8)
    return Scale(
        min_replicas=least,
        max_replicas=most,
        # Half a batch: a GPU with less to do answers no more requests for company.
        target_requests=batch / 2,
        num_gpus=int(on_gpu),
        num_cpus=1 if on_gpu else max(1, cpus // most),
    )


def _absolute(settings: Settings) -> Settings:
    """The settings with paths that do not depend on where a process was started."""
    root, store = settings.root, settings.store
    return dataclasses.replace(
        settings,
        root=None if root is None else root.absolute(),
        store=store
        if store is None or "://" in store
        else str(Path(store).expanduser().absolute()),
    )
