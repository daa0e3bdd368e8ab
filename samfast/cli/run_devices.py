"""On which devices `samfast run` works: one in this process, or several by Ray."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import load_model, positive_int
from samfast.cli.console import CommandLineError, Console
from samfast.cli.ray_options import model_arguments
from samfast.ray_cluster import LOCAL, ray_cluster

if TYPE_CHECKING:
    from samfast.cluster.run_identity import EngineIdentity
    from samfast.cluster.run_on_ray import Workers


@dataclass(frozen=True)
class Devices:
    """Devices that are ready.

    identity  of the engine that each has
    run       `run_shards`, but for its first argument
    """

    identity: EngineIdentity
    run: Callable[..., bool]


def add_device_options(group: Any) -> None:
    """Add --address and --workers."""
    group.add_argument(
        "--address",
        metavar="URL",
        help="work on all GPUs of a Ray cluster: auto (the one that runs on this machine), "
        "HOST:PORT or ray://HOST:PORT; local starts Ray on this machine (default: local where "
        "there are several GPUs and --device names none of them; else without Ray)",
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes with a model each, on Ray (default: one for each GPU; without GPUs, say "
        "how many share the CPUs)",
    )


@contextmanager
def devices(args: argparse.Namespace, console: Console) -> Iterator[Devices]:
    """The devices that the options name, ready within the block.

    Raises CommandLineError for options that contradict each other or the cluster.
    """
    address = args.address or (LOCAL if _several_gpus(args.device) else None)
    if address is None:
        if args.workers is not None:
            raise CommandLineError("--workers is for a Ray cluster (give --address, as local)")
        from samfast.cluster.run_identity import engine_identity
        from samfast.cluster.run_shards import run_shards

        sam = load_model(args)
        yield Devices(engine_identity(sam), partial(run_shards, sam))
        return
    if args.device is not None and ":" in args.device:
        raise CommandLineError(f"--device {args.device}: Ray gives each process a GPU (name cuda)")
    with ray_cluster(address, f"samfast run --address {address}") as ray:
        from samfast.cluster.run_on_ray import remote_identity, run_on_ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = args.device or ("cuda" if gpus else "cpu")
        workers = _workers(args, device, gpus, int(ray.cluster_resources().get("CPU", 1)))
        model = model_arguments(args, device)
        console.warn(f"Ray: {workers.count} workers on {device}")
        identity = remote_identity(ray, model, workers)
        yield Devices(identity, partial(run_on_ray, model, workers))


def _several_gpus(device: str | None) -> bool:
    """Whether this machine has several GPUs, and the user left open which is to work."""
    if device not in (None, "cuda"):
        return False
    import torch

    return torch.cuda.device_count() > 1


def _workers(args: argparse.Namespace, device: str, gpus: int, cpus: int) -> Workers:
    from samfast.cluster.read_ahead import READERS, READERS_BESIDE_A_CPU
    from samfast.cluster.run_on_ray import Workers

    if device.startswith("cpu"):
        if args.workers is None:
            raise CommandLineError(
                "--address: Ray knows of no GPU (say with --workers how many share the CPUs)"
            )
        if args.workers > cpus:
            raise CommandLineError(f"--workers {args.workers}: the cluster has {cpus} CPUs")
        return Workers(args.workers, 0, cpus // args.workers, READERS_BESIDE_A_CPU)
    count = args.workers or gpus
    if not 1 <= count <= gpus:
        raise CommandLineError(f"--workers {count}: the cluster has {gpus} GPUs")
    # CPUs that a worker keeps, for reading images and for what its GPU leaves to them.
    return Workers(count, 1, max(1, min(READERS, cpus // count)), READERS)
