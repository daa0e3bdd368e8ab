"""`samfast serve`: one model for many people and their tools, over HTTP."""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import serve_on_ray
from samfast.cli.common_options import (
    add_command,
    add_model_options,
    load_model,
    non_negative_int,
    positive_int,
)
from samfast.cli.console import CommandLineError, Console
from samfast.device.loaded_objects import loaded_objects_kept
from samfast.errors import MissingExtraError
from samfast.serve.wires import WIRES

if TYPE_CHECKING:
    from samfast.serve.photo_folder import PhotoFolder
    from samfast.serve.settings import Settings


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "serve",
        run,
        help="serve one model to many people and their tools over HTTP",
        description="Answer clicks over HTTP, of many clients in batches, with a page to click in\n"
        "at / and the API described at /docs. Only this machine can reach it by default.",
        epilog="examples:\n"
        "  samfast serve --root photos --store ~/embeddings\n"
        "  samfast serve --host 0.0.0.0 --token-file token.txt --wire cvat\n"
        "  samfast serve --ray --store ~/embeddings",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; another address than this machine's own needs --token-file "
        "(default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=port_number, default=8000, metavar="N", help="0: any free (default: 8000)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder whose images requests may name by their path (default: none)",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="keep embeddings in this folder or fsspec URL (default: in memory only)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that requests must carry: Authorization: Bearer TOKEN",
    )
    parser.add_argument(
        "--wire",
        default="",
        metavar="NAMES",
        help=f"also speak the protocol of other tools, with commas between: {', '.join(WIRES)}",
    )
    add_limits(parser)
    parser.add_argument(
        "--http-processes",
        type=non_negative_int,
        metavar="N",
        help="processes that speak HTTP beside the one that has the model; Linux only (default: on "
        "a GPU one for every two cores, at most 8; otherwise 0, the model's own process)",
    )
    serve_on_ray.add_options(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="log warnings only, instead of each request"
    )
    add_model_options(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options of batches and of memory."""
    group = parser.add_argument_group("batches and memory")
    group.add_argument(
        "--batch-objects",
        type=positive_int,
        metavar="N",
        help="objects to decode together, of all clients; 1: no batching (default: 64, on a CPU 8)",
    )
    group.add_argument(
        "--batch-images",
        type=positive_int,
        metavar="N",
        help="images to encode together (default: --batch-size)",
    )
    group.add_argument(
        "--max-wait",
        type=milliseconds,
        metavar="MS",
        help="a click waits at most so long for company (default: 5)",
    )
    group.add_argument(
        "--store-size",
        type=gibibytes,
        metavar="GIB",
        help="embeddings in the store; the oldest are removed (default: 64)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="refuse images of more pixels than this (default: 64000000)",
    )


def milliseconds(text: str) -> float:
    """For argparse: milliseconds as seconds."""
    return float(non_negative_int(text)) / 1000


def gibibytes(text: str) -> int:
    """For argparse: GiB as bytes."""
    return int(positive_int(text)) << 30


def port_number(text: str) -> int:
    """For argparse: a port of TCP."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until a signal asks to end, and answer what was accepted; 0."""
    if args.ray is not None:
        if args.http_processes is not None:
            raise CommandLineError("--http-processes does not go with --ray, which has its own")
        return serve_on_ray.run_on_ray(args, settings_of(args), console)
    if args.replicas is not None:
        raise CommandLineError("--replicas needs --ray")
    return run_server("serve", args, settings_of, console)


def run_server(
    command: str,
    args: argparse.Namespace,
    settings_of: Callable[[argparse.Namespace], Settings],
    console: Console,
    *,
    folder_of: Callable[[argparse.Namespace], PhotoFolder] | None = None,
    on_address: Callable[[str], None] | None = None,
) -> int:
    """Load the model that the options name, and serve it until a signal asks to end; 0.

    command     names the command in messages
    folder_of   the photos that the page offers; None: those below the root
    on_address  called with the page's address when the port is open
    """
    try:
        import uvicorn

        from samfast.serve.app import create_app, public_paths
        from samfast.serve.http_processes.pooled_server import PooledServer, shared_port
        from samfast.serve.http_processes.process_pool import process_count
        from samfast.serve.json_log import logs_on_stderr
        from samfast.serve.service import SegmentationService
        from samfast.serve.timed_connections import timed
    except ImportError as error:
        raise MissingExtraError(
            f"samfast {command} needs {error.name}: pip install 'samfast[serve]'"
        ) from error
    settings = settings_of(args)
    folder = None if folder_of is None else folder_of(args)
    sam = load_model(args)
    service = SegmentationService(sam, settings)
    app = create_app(service, settings, settings.wires, folder=folder)
    level = logging.WARNING if args.quiet else logging.INFO
    if count := process_count(settings.http_processes, sam.device.type):
        server: uvicorn.Server = PooledServer(app, service, public_paths(), level)
    else:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            # uvicorn's own refusal has no JSON; it is for connections that send nothing.
            limit_concurrency=4 * settings.max_requests,
            timeout_graceful_shutdown=int(settings.drain_seconds),
            server_header=False,
        )
        server = uvicorn.Server(timed(config, settings.upload_seconds))
    with logs_on_stderr(level), listening(settings) as sock, loaded_objects_kept():
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = sock.getsockname()[1]
        # Before anybody is told the address: for a moment nobody listens.
        sockets = shared_port(sock, count) if count else [sock]
        console.warn(f"{sam.name}, recipe {sam.recipe_name}, at http://{host}:{port}/")
        if on_address is not None:
            on_address(f"http://{host}:{port}/")
        try:
            server.run(sockets)
        except KeyboardInterrupt:  # uvicorn raises the signal again when all is answered
            pass
        except SystemExit:  # uvicorn's, after it has logged why
            return 1
    return 1 if getattr(server, "failed", False) else 0


def listening(settings: Settings) -> socket.socket:
    """A socket that listens; who comes before the server runs waits, and is not refused.

    CommandLineError if the system does not give that address.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        sock = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise CommandLineError(
            f"--host {settings.host} with port {settings.port}: {error.strerror or error} "
            "(choose another with --port, or 0 for any)"
        ) from error
    # Connections inherit it. asyncio sets it only where a socket names its protocol, and without it
    # an answer's second part waits for the client's acknowledgement of the first, 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for; CommandLineError for what cannot be."""
    from samfast.serve.settings import Settings

    if args.root is not None and not args.root.is_dir():
        raise CommandLineError(f"--root {args.root}: there is no such folder")
    wires = tuple(name for name in args.wire.split(",") if name)
    for name in wires:
        if name not in WIRES:
            raise CommandLineError(f"--wire {name}: there are {', '.join(WIRES)}")
    given = {
        "batch_objects": args.batch_objects,
        "batch_images": args.batch_images,
        "max_wait_seconds": args.max_wait,
        "store_bytes": args.store_size,
        "max_image_pixels": args.max_pixels,
    }
    return Settings(
        **{name: value for name, value in given.items() if value is not None},
        host=args.host,
        port=args.port,
        root=args.root,
        store=args.store,
        token=None if args.token_file is None else read_token(args.token_file),
        wires=wires,
        http_processes=args.http_processes,
    )


def read_token(path: Path) -> str:
    """The token in a file; CommandLineError if it cannot be read or is too short to be one."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandLineError(f"--token-file {path}: cannot be read ({error})") from error
    if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
        raise CommandLineError(
            f"--token-file {path}: give one line of at least 16 ASCII characters without spaces"
        )
    return token
