"""`samfast embed`: fill a store with embeddings ahead of the clicks."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import add_command, add_model_options, load_model, positive_int
from samfast.cli.console import CommandLineError, Console, printable
from samfast.cli.image_files import SUFFIXES
from samfast.cli.scene_options import READING, add_reading_options
from samfast.cli.segment_scenes import late_progress, window_store
from samfast.errors import ImageError, ImageWarning, MissingExtraError, SamfastError

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
        help="embed a folder of images, or a scene, ahead of the clicks on them",
        description="Embed every image below a folder into a store, from which `samfast serve\n"
        "--store URL` answers at once, whatever the images are called there. Images that the\n"
        "store has already are skipped. With --tile, embed the windows of one image that is\n"
        "larger than the model's, for clicks in it.",
        epilog="examples:\n  samfast embed photos --store ~/embeddings\n"
        "  samfast embed scene.tif --tile 1024 --store ~/embeddings",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="with its subdirectories; with --tile, an image or its URL"
    )
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
    group = parser.add_argument_group("images larger than the model's window")
    group.add_argument(
        "--tile",
        type=positive_int,
        metavar="N",
        help="side of the windows in pixels, at least the model's; about 16 MiB of embeddings for "
        "each 1024 x 1024 pixels in float32",
    )
    add_reading_options(group)
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
    if args.tile is not None:
        return embed_scene(args, console)
    for name in READING:
        if getattr(args, name) is not None:
            raise CommandLineError(f"--{name.replace('_', '-')} is for scenes (add --tile N)")
    folder = Path(args.folder)
    if not folder.is_dir():
        scene = " (name one of images, or add --tile N for a scene)"
        raise CommandLineError(f"{folder}: there is no such folder{scene}")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not paths:
        raise CommandLineError(f"{folder}: there are no images in it (name a folder of some)")
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


def embed_scene(args: argparse.Namespace, console: Console) -> int:
    """Embed the windows of a scene; 0, or 1 if some could not be read."""
    sam = load_model(args)
    store = window_store(sam, args.store, args.store_size)
    reading = {name: getattr(args, name) for name in READING}
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # failures are told below
        progress = late_progress(stack, console, "window")
        done = sam.embed_large(args.folder, store, tile=args.tile, progress=progress, **reading)
    for line in (*done.notes, *done.failures):
        console.warn(f"{printable(args.folder)}: {line}")
    held = store.store
    console.result(
        f"{done.embedded} windows embedded, {done.known} known already, {done.empty} without data, "
        f"{len(done.failures)} failed; the store has {len(held)} of {held.bytes / 1e6:.1f} MB"
    )
    return 1 if done.failures else 0


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
