"""Settings: the address, the limits and the memory of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from samfast.errors import InputError

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Settings:
    """Every limit and address of a server; the defaults are safe on a desk.

    host, port             where it listens; port 0 takes any free one
    root                   folder whose images may be named by a path; None: no paths
    store                  folder or fsspec URL in which embeddings are kept; None: memory only
    token                  bearer token that requests must carry; required off loopback
    wires                  names of files in `samfast.serve.wires`
    http_processes         processes that speak HTTP beside the one that has the device; 0: it does
                           so itself; None: on a GPU under Linux one for every four cores, at most 8

    max_image_bytes        of an upload
    max_json_bytes         of a body of JSON, which may hold an image in base64
    max_image_pixels       of an image
    max_objects            in one request
    max_points             of all objects of one request
    max_grid_points        clicks of a search for everything, on the image and its crops
    max_uploads            images that are decoded at once
    max_queued             clicks that wait for the device; more are refused with 429. Half as many
                           uploads and a quarter as many bulk jobs may wait beside them
    max_requests           requests that are received or answered; more are refused with 429
    request_seconds        a request that takes longer is answered with 504
    upload_seconds         a body that takes longer to arrive is answered with 408
    segment_seconds        a search for everything that takes longer ends
    max_prewarm            images in one list of `/v1/prewarm`
    drain_seconds          after SIGTERM, accepted requests have this long

    batch_objects          objects decoded together; 1 turns batching off; None: 64, and 8 on a CPU,
                           where larger batches are no faster and others wait for them
    batch_images           images encoded together; None: the engine's batch size
    max_wait_seconds       a request waits at most so long for company

    device_bytes           of embeddings on the model's device
    host_bytes             of embeddings in host memory; on a CPU, where both are one, their sum
    store_bytes            of embeddings in `store`
    image_bytes            of uploaded images, encoded as they came
    body_bytes             of the bodies of all requests that are being received or answered
    pixel_bytes            of decoded images that wait to be encoded
    mask_bytes             of low-resolution masks that requests refer to
    """

    host: str = "127.0.0.1"
    port: int = 8000
    root: Path | None = None
    store: str | None = None
    token: str | None = field(default=None, repr=False)
    wires: tuple[str, ...] = ()
    http_processes: int | None = None

    max_image_bytes: int = 64 * MEBIBYTE
    max_json_bytes: int = 32 * MEBIBYTE
    max_image_pixels: int = 64_000_000
    max_objects: int = 256
    max_points: int = 4096
    max_grid_points: int = 16_384
    max_uploads: int = 8
    max_queued: int = 1024
    max_requests: int = 1024
    request_seconds: float = 120.0
    upload_seconds: float = 30.0
    segment_seconds: float = 600.0
    max_prewarm: int = 10_000
    drain_seconds: float = 30.0

    batch_objects: int | None = None
    batch_images: int | None = None
    max_wait_seconds: float = 0.005

    device_bytes: int = 2 * GIBIBYTE
    host_bytes: int = 1 * GIBIBYTE
    store_bytes: int = 64 * GIBIBYTE
    image_bytes: int = 512 * MEBIBYTE
    body_bytes: int = 512 * MEBIBYTE
    pixel_bytes: int = 1 * GIBIBYTE
    mask_bytes: int = 256 * MEBIBYTE

    def __post_init__(self) -> None:
        for name in (
            *("max_image_bytes", "max_image_pixels", "max_objects", "max_points", "max_uploads"),
            *("max_queued", "max_requests", "request_seconds", "upload_seconds"),
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r}; give a number above 0")
        if self.http_processes is not None and self.http_processes < 0:
            raise InputError(f"http_processes={self.http_processes!r}; give 0 or more")
        if not is_loopback(self.host) and not self.token:
            raise InputError(
                f"host {self.host} can be reached from other machines, so a token is required; "
                "give one with --token-file, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
