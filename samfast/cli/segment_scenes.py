"""`samfast segment --tile N`: scenes, tile by tile, and prompts in them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import automatic_options, load_model
from samfast.cli.console import CommandLineError, Console, printable
from samfast.cli.scene_options import SCENE_ONLY
from samfast.cli.segment_formats import FORMATS, SCENE_FORMATS
from samfast.cli.segment_prompted import prompted_objects
from samfast.cli.segment_report import plural
from samfast.errors import MissingExtraError, OutputError, SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.scenes.scene_objects import SceneObjects
    from samfast.scenes.window_embeddings import EmbeddingCache
    from samfast.serve.window_store import WindowStore
    from samfast.types import Progress, Prompts

DEFAULT = "gpkg"

DEFAULT_STORE_GIB = 64
"""Of a store, as of `samfast serve` and `samfast embed`."""

TARGETS = {
    "gpkg": ("{}.gpkg", "write_geopackage"),
    "geojson": ("{}.geojson", "write_geojson"),
    "coco": ("{}.json", "write_coco"),
    "labels": ("{}.labels.tif", "write_labels"),
    "zarr": ("{}.labels.zarr", "write_labels"),
}
"""The file of each format and the method of `SceneObjects` that writes it."""


def check_scene_options(args: argparse.Namespace) -> None:
    """CommandLineError for options of scenes without --tile, and for others with it."""
    if args.tile is None:
        for name in SCENE_ONLY:
            if getattr(args, name) not in (None, False):
                raise CommandLineError(f"--{name.replace('_', '-')} is for scenes (add --tile N)")
        names = [name for name in args.format or () if name not in FORMATS]
        if names:
            raise CommandLineError(f"--format {names[0]} is for scenes (add --tile N)")
        return
    for name in ("overlay", "all_masks", "coco", "recursive"):
        if getattr(args, name):
            raise CommandLineError(f"--{name.replace('_', '-')} is not for --tile (leave it out)")
    names = [name for name in args.format or () if name not in SCENE_FORMATS]
    if names:
        raise CommandLineError(
            f"--format {names[0]} is not for --tile (choose from {', '.join(SCENE_FORMATS)})"
        )


def segment_scenes(images: list[str], args: argparse.Namespace, console: Console) -> int:
    """Do each scene; 0, or 1 if some failed or lack tiles."""
    out = Path(args.out)
    prompted = _prompts(args)
    targets = {name: out / TARGETS[name][0] for name in args.format or [DEFAULT]}
    stems = [_stem(image) for image in images]
    repeated = next((stem for stem in stems if stems.count(stem) > 1), None)
    if repeated is not None:
        raise CommandLineError(f"two scenes are called {repeated} (give each its own --out)")
    if args.json not in (None, "-"):
        Path(args.json).write_text("", encoding="utf-8")
    sam: SamFast | None = None
    failed = 0
    for image, stem in zip(images, stems, strict=True):
        files = {name: Path(str(path).format(stem)) for name, path in targets.items()}
        if args.skip_existing and all(path.exists() for path in files.values()):
            console.warn(f"{image}: skipped, its files are all there")
            continue
        sam = sam or load_model(args)
        try:
            complete = _segment_scene(sam, image, stem, files, prompted, args, console)
        except SamfastError as error:
            console.warn(str(error))
            complete = False
        failed += not complete
    return 1 if failed else 0


def _stem(image: str) -> str:
    name = image.rstrip("/").rpartition("/")[2]
    for ending in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem


def _prompts(args: argparse.Namespace) -> Prompts | Path | None:
    """The prompts of the command line, if it has any."""
    objects = prompted_objects(args.point, args.box)
    options = automatic_options(args)
    if args.prompts is not None and objects:
        raise CommandLineError("--prompts has prompts of its own (leave --point and --box out)")
    if not objects and args.prompts is None:
        for name in ("map_coordinates", "embedding_cache", "store"):
            if getattr(args, name):
                raise CommandLineError(f"--{name.replace('_', '-')} is for --point and --box")
        return None
    if options:
        option = "--" + next(iter(options)).replace("_", "-")
        raise CommandLineError(
            f"{option} is for segmenting everything (leave it out, or the prompts)"
        )
    for name in ("overlap", "complete_cut"):
        if getattr(args, name) not in (None, False):
            raise CommandLineError(
                f"--{name.replace('_', '-')} is for segmenting everything (leave it out)"
            )
    if args.prompts is not None:
        return Path(args.prompts)
    if len({(bool(each.points), each.box is not None) for each in objects}) > 1:
        raise CommandLineError("clicks and several boxes in one scene need --prompts FILE")
    from samfast.types import Prompts

    return Prompts(
        points=[[(x, y) for x, y, _ in each.points] for each in objects if each.points] or None,
        labels=[[label for _, _, label in each.points] for each in objects if each.points] or None,
        boxes=[each.box for each in objects if each.box is not None] or None,
    )


def _segment_scene(
    sam: SamFast,
    image: str,
    stem: str,
    files: dict[str, Path],
    prompts: Prompts | Path | None,
    args: argparse.Namespace,
    console: Console,
) -> bool:
    """Segment a scene and write its files; whether nothing is missing in them."""
    _make_folder(next(iter(files.values())).parent)
    workspace = Path(args.out) / f"{stem}.tiles"
    started = time.perf_counter()
    with ExitStack() as stack:
        progress = late_progress(stack, console, "tile" if prompts is None else "prompt")
        try:
            objects = _objects(sam, image, prompts, args, workspace, progress)
        except BaseException as ended:
            if not isinstance(ended, Exception) and workspace.exists():  # Ctrl-C
                console.warn(
                    f"{image}: finished tiles are kept in {workspace}; go on by the same command"
                )
            raise
    with closing(objects):
        for note in objects.notes:
            console.warn(f"{image}: {note}")
        for name, path in files.items():
            getattr(objects, TARGETS[name][1])(path)
            if args.json != "-":
                console.result(str(path))
        seconds = time.perf_counter() - started
        count = len(objects)
        console.warn(f"{image}: {plural(count, 'object')} in {seconds:.1f} s")
        _write_line(args.json, _summary(image, files, objects, count), console)
        failures = objects.failures
    if failures and prompts is None:
        console.warn(
            f"{image}: {plural(len(failures), 'part')} could not be read and nothing was found "
            f"there; the same command tries these again ({workspace} keeps the rest)"
        )
    elif prompts is None:
        remove_workspace(workspace)
    return not failures


def _objects(
    sam: SamFast,
    image: str,
    prompts: Prompts | Path | None,
    args: argparse.Namespace,
    workspace: Path,
    progress: Progress,
) -> SceneObjects:
    common: dict[str, Any] = {
        "tile": args.tile,
        "resolution": args.resolution,
        "bands": args.bands,
        "percentiles": args.percentiles,
        "value_range": args.value_range,
        "nodata": args.nodata,
        "progress": progress,
    }
    if prompts is None:
        overlap = {} if args.overlap is None else {"overlap": args.overlap}
        return sam.segment_large(
            image,
            workspace=workspace,
            complete_cut=args.complete_cut,
            **common,
            **overlap,
            **automatic_options(args),
        )
    coordinates = "map" if args.map_coordinates else "pixels"
    cache = _cache(sam, args)
    return sam.predict_large(image, prompts, coordinates=coordinates, cache=cache, **common)


def _cache(sam: SamFast, args: argparse.Namespace) -> EmbeddingCache | None:
    """Where the embeddings of windows are kept, if the command line says so."""
    if args.store is not None and args.embedding_cache is not None:
        raise CommandLineError("--store keeps embeddings, too (leave --embedding-cache out)")
    if args.store is not None:
        return window_store(sam, args.store, DEFAULT_STORE_GIB)
    if args.embedding_cache is not None:
        from samfast.scenes import FolderCache

        return FolderCache(args.embedding_cache)
    return None


def window_store(sam: SamFast, url: str, gibibytes: int) -> WindowStore:
    """A store of the server for the windows of scenes; MissingExtraError without `serve`."""
    try:
        from samfast.serve.embedding_store import EmbeddingStore, feature_key
        from samfast.serve.store_backends import backend_of
        from samfast.serve.window_store import WindowStore
    except ImportError as error:
        raise MissingExtraError(
            f"--store needs {error.name}: pip install 'samfast[serve]'"
        ) from error
    return WindowStore(EmbeddingStore(backend_of(url), feature_key(sam), gibibytes << 30))


def late_progress(stack: ExitStack, console: Console, unit: str) -> Progress:
    """A function that shows a bar from its first call on, when the total is known."""
    advance: list[Callable[[int], None]] = []
    shown = 0

    def show(done: int, total: int | None) -> None:
        nonlocal shown
        if not advance:
            advance.append(stack.enter_context(console.progress(total or 0, unit)))
        advance[0](done - shown)
        shown = done

    return show


def remove_workspace(workspace: Path) -> None:
    """Remove the file of tiles and what SQLite keeps beside it."""
    for path in (workspace, *(Path(f"{workspace}-{end}") for end in ("wal", "shm"))):
        path.unlink(missing_ok=True)


def _summary(
    image: str, files: dict[str, Path], objects: SceneObjects, count: int
) -> dict[str, Any]:
    height, width = objects.info.size
    return {
        "image": image,
        "height": height,
        "width": width,
        "objects": count,
        "files": [str(path) for path in files.values()],
        "notes": list(objects.notes),
        "failures": list(objects.failures),
    }


def _write_line(destination: str | None, line: dict[str, Any], console: Console) -> None:
    if destination is None:
        return
    text = json.dumps(line)
    if destination == "-":
        console.result(text)
        return
    try:
        with open(destination, "a", encoding="utf-8") as file:
            print(text, file=file)
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandLineError(f"--out {printable(str(folder))}: {error.strerror}") from None
