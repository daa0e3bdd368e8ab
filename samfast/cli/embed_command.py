"""`samfast embed`: fill a store with embeddings ahead of the clicks."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import add_command, add_model_options, load_model, positive_int
from samfast.cli.console import CommandLineError, Console, printable
from samfast.cli.image_files import SUFFIXES
from samfast.errors import ImageError, MissingExtraError, SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage
    from samfast.serve.embedding_store import EmbeddingStore


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "embed",
        run,
        help="embed a folder of images ahead of the clicks on them",
        description="Embed every image below a folder into a store, from which `samfast serve\n"
        "--store URL` answers at once, whatever the images are called there. Images that the\n"
        "store has already are skipped.",
        epilog="example:\n  samfast embed photos --store ~/embeddings",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with its subdirectories")
    parser.add_argument(
        "--store", required=True, metavar="URL", help="a folder, or a URL that fsspec understands"
    )
    parser.add_argument(
        "--store-size",
        type=positive_int,
        default=64,
        metavar="GIB",
        help="embeddings in the store; the oldest are removed (default: 64)",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="refuse images of more pixels than this (default: Pillow's limit, 89478485)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Embed every image; 0, or 1 if some failed."""
    try:
        from samfast.serve.embedding_store import EmbeddingStore, feature_key
        from samfast.serve.store_backends import backend_of
    except ImportError as error:
        raise MissingExtraError(
            f"samfast embed needs {error.name}: pip install 'samfast[serve]'"
        ) from error
    if not args.folder.is_dir():
        raise CommandLineError(f"{args.folder}: there is no such folder (name one of images)")
    paths = sorted(
        path
        for path in args.folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not paths:
        raise CommandLineError(f"{args.folder}: there are no images in it (name a folder of some)")
    sam = load_model(args)
    store = EmbeddingStore(backend_of(args.store), feature_key(sam), args.store_size << 30)
    done = known = failed = 0
    with console.progress(len(paths), "image") as advance:
        for chunk in chunks(paths, sam.batch_size):
            new: dict[str, LoadedImage] = {}
            for path in chunk:
                try:
                    image_id, image = read(path, store)
                except SamfastError as error:
                    console.warn(str(error))
                    failed += 1
                else:
                    if image is None or image_id in new:
                        known += 1
                    else:
                        new[image_id] = image
            written = embed(sam, store, new, console)
            done, failed = done + written, failed + len(new) - written
            advance(len(chunk))
    console.result(
        f"{done} embedded, {known} known already, {failed} failed; the store has {len(store)} of "
        f"{store.bytes / 1e6:.1f} MB"
    )
    return 1 if failed else 0


def chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """The paths, so many at a time."""
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def read(path: Path, store: EmbeddingStore) -> tuple[str, LoadedImage | None]:
    """An image's id, and its pixels unless the store has its embedding. Raises ImageError."""
    from samfast.images import load_bytes

    name = printable(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror}") from error
    image_id = hashlib.sha256(data).hexdigest()
    # Read, and not only looked for: a damaged file is embedded again.
    if image_id in store and store.read(image_id) is not None:
        return image_id, None
    return image_id, load_bytes(data, name)


def embed(
    sam: SamFast, store: EmbeddingStore, images: dict[str, LoadedImage], console: Console
) -> int:
    """Embed images together and write them into the store; returns how many it took."""
    if not images:
        return 0
    try:
        embeddings = sam.embed(list(images.values())).cpu()
    except SamfastError as error:
        if len(images) == 1:
            console.warn(f"{next(iter(images.values())).name}: {error}")
            return 0
        return sum(embed(sam, store, {key: image}, console) for key, image in images.items())
    written = 0
    for number, (image_id, image) in enumerate(images.items()):
        if store.write(image_id, embeddings[number]):
            written += 1
        else:
            console.warn(f"{image.name}: its embedding could not be written into the store")
    return written
