"""`samfast label`: a page on which the photos of a folder are labelled."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import add_command, add_model_options
from samfast.cli.console import CommandLineError, Console
from samfast.cli.serve_command import port_number, read_token, run_server

if TYPE_CHECKING:
    from samfast.serve.photo_folder import PhotoFolder
    from samfast.serve.settings import Settings


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "label",
        run,
        help="label the photos of a folder in the browser",
        description="Open a page on which the photos of a folder are labelled: click an object, "
        "and its\noutline is saved, as soon as it is drawn, to a COCO instances file.",
        epilog="The file is read first, and what it holds is shown and kept. Several tabs and "
        "several people\nat one machine may label at once: none overwrites the other's work. "
        "Ctrl-C ends; the same\ncommand goes on where you were.",
    )
    parser.add_argument("photos", metavar="PHOTOS", type=Path, help="the folder")
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        type=Path,
        help="the COCO instances file (default: annotations.json in PHOTOS)",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="label the photos of its subfolders too"
    )
    parser.add_argument(
        "--port", type=port_number, default=0, metavar="N", help="(default: any free one)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; 0.0.0.0 lets a phone or tablet in and needs --token-file (default: "
        "127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that the page asks for",
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="keep embeddings in this folder or fsspec URL, so that photos open at once the next "
        "time (default: in memory only)",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the page's address, and do not open it"
    )
    add_model_options(parser)
    parser.set_defaults(quiet=True)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve the page until a signal asks to end; 0."""
    photos: Path = args.photos
    if not photos.is_dir():
        raise CommandLineError(f"{photos}: there is no such folder")

    def announce(address: str) -> None:
        console.result(address)
        if not args.no_browser and _has_screen():
            # A browser that is slow to start must not keep the server from running.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    return run_server(
        "label", args, _settings_of, console, folder_of=_folder_of, on_address=announce
    )


def _has_screen() -> bool:
    """Whether a browser can show a window. Without one Python would start lynx in the terminal."""
    desktop = sys.platform in ("darwin", "win32")
    return desktop or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _settings_of(args: argparse.Namespace) -> Settings:
    from samfast.serve.settings import Settings

    return Settings(
        host=args.host,
        port=args.port,
        root=args.photos,
        store=args.store,
        token=None if args.token_file is None else read_token(args.token_file),
        http_processes=0,
    )


def _folder_of(args: argparse.Namespace) -> PhotoFolder:
    """The photos and their annotations; CommandLineError if there are none, or no way to save."""
    from samfast.serve.annotations_file import AnnotationsFile
    from samfast.serve.photo_folder import PhotoFolder

    path: Path = args.annotations or args.photos / "annotations.json"
    if not os.access(path.parent, os.W_OK):
        raise CommandLineError(
            f"{path}: this user may not write there; name another file with --annotations"
        )
    folder = PhotoFolder(args.photos, recursive=args.recursive, annotations=AnnotationsFile(path))
    if not folder.names():
        more = "" if args.recursive else " (--recursive searches its subfolders)"
        raise CommandLineError(f"{args.photos}: no photo in this folder{more}")
    return folder
