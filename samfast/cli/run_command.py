"""`samfast run`: the masks or embeddings of any number of images, shard by shard, exactly once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import prompt_files
from samfast.cli.common_options import (
    AUTOMATIC,
    add_automatic_options,
    add_command,
    add_json_option,
    add_max_pixels_option,
    add_model_options,
    automatic_options,
    non_negative_int,
    positive_int,
)
from samfast.cli.console import CommandLineError, Console
from samfast.cli.run_devices import Devices, add_device_options, devices
from samfast.cli.run_progress import RunProgress, WriteEvent, event_lines
from samfast.cli.segment_report import plural
from samfast.errors import MissingExtraError, SamfastError

if TYPE_CHECKING:
    from samfast.cluster.destination import Destination
    from samfast.cluster.manifest import Manifest
    from samfast.cluster.sources import Source
    from samfast.cluster.work import Work

LOCK = ".samfast-run.lock"
"""The file that a run holds locked in a folder of results. The system unlocks it when it dies."""

DESCRIPTION = """\
Find masks in any number of images, or embed them, and write the results in shards. The same command
goes on after an interruption and does no image twice."""

EPILOG = f"""\
SOURCE is one of
  a folder            with its subfolders
  a glob              in quotes: 'photos/**/*.jpg'
  a list              a .txt or .lst file with a path or URL in each line; relative paths begin at
                      the list's folder
  a .tar file         as WebDataset has them, not compressed; also a folder or glob of them
  a .parquet file     with a column of image bytes; also a folder or glob of them
  a URL               of one of these, as s3://bucket/photos, for which fsspec knows the protocol

DEST, a folder or URL, gets
  masks/*.parquet     one row a mask: image, image_width, image_height, object, segmentation_size,
                      segmentation_counts (COCO RLE), bbox (XYWH, W and H from first to last pixel),
                      area, predicted_iou, stability_score, with --prompts category_id and
                      annotation_id, and model, recipe, versions
  embeddings/         with --embeddings: a store for `samfast serve --store DEST/embeddings`, and
                      in embedded/*.parquet the image of each file
  failures.parquet    images without an answer: image, error, reason
  manifest.json       which run this is, and which shards are done
  `samfast convert DEST --to coco` makes COCO, YOLO or GeoJSON of it.

prompts:
{prompt_files.HELP}

A shard is written whole or not at all, so whatever ends a run, the same command goes on where it
was. A run with another model, recipe, option or source is refused. A bad image is named in
failures.parquet, the others are done, and the exit code is 1.

examples:
  samfast run photos --out results --everything points_per_side=16
  samfast run s3://bucket/photos --out results --prompts instances.json
  samfast run 'shards/*.tar' --out results --embeddings"""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "run",
        run,
        help="masks or embeddings of any number of images, shard by shard",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="images, see below")
    parser.add_argument(
        "--out", required=True, metavar="DEST", help="the folder or URL of the results"
    )
    _add_work_options(parser.add_argument_group("work"))
    group = parser.add_argument_group("run")
    group.add_argument(
        "--shard-size",
        type=positive_int,
        metavar="N",
        help="images in a shard; more of them make fewer files, and an interruption costs more "
        "(default: 64, or that of the run which goes on)",
    )
    group.add_argument(
        "--max-failures",
        type=non_negative_int,
        metavar="N",
        help="end after the shard with which more images than this have failed (default: never)",
    )
    group.add_argument(
        "--retry-failures", action="store_true", help="do shards with failures again"
    )
    add_device_options(group)
    add_max_pixels_option(parser)
    add_json_option(parser)
    add_automatic_options(
        parser.add_argument_group("everything", "how to search each image without prompts")
    )
    add_model_options(parser)


def _add_work_options(group: Any) -> None:
    group.add_argument(
        "--everything",
        nargs="*",
        metavar="OPTION=VALUE",
        help="all masks in each image, the default; the options are those below, with underscores",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="masks of the objects in a COCO instances, JSON or CSV file, see below",
    )
    group.add_argument(
        "--prompt-with",
        choices=prompt_files.KINDS,
        default=prompt_files.KINDS[0],
        help="what of a COCO annotation prompts: its box, its keypoints (or else the point of its "
        "mask farthest from the border), or both together (default: box)",
    )
    group.add_argument(
        "--all-masks", action="store_true", help="three masks for each object, best first"
    )
    group.add_argument("--embeddings", action="store_true", help="embeddings instead of masks")


def run(args: argparse.Namespace, console: Console) -> int:
    """Do all shards that are left; 0, or 1 if some image failed or the run could not go on."""
    _take_back_source(args)
    options = _check_work(args)
    from samfast.cluster.destination import Destination
    from samfast.cluster.sources import open_source

    if find_spec("pyarrow") is None:  # found out before any work
        raise MissingExtraError("samfast run needs pyarrow: pip install 'samfast[cluster]'")
    source = open_source(args.source, leave_out=args.out)
    for note in source.notes:
        console.warn(note)
    destination = Destination(args.out)
    source, work, extra = _work(args, options, source, destination, console)
    with _only_one(destination), event_lines(args.json, console) as write:
        finished = _finished(args, options, destination, source, work)
        if finished is not None and not (args.retry_failures and finished.failed):
            return _nothing_left(finished, write, console)
        automatic_options(args)
        with devices(args, console) as ready:
            manifest = _prepare(args, options, destination, source, work, extra, ready, console)
            if manifest.finished:
                manifest.write()
                return _nothing_left(manifest, write, console)
            return _do(args, ready, work, source, manifest, write, console)


def _take_back_source(args: argparse.Namespace) -> None:
    """`--everything SOURCE`: argparse gives the option all that follows it."""
    values = args.everything or []
    sources = [value for value in values if "=" not in value]
    if args.source is None and len(sources) == 1:
        args.source, args.everything = sources[0], [v for v in values if v != sources[0]]
    elif sources:
        raise CommandLineError(
            f"--everything {sources[0]}: not OPTION=VALUE, for example points_per_side=16"
        )
    if args.source is None:
        raise CommandLineError("no SOURCE is named (see samfast run --help)")


def _check_work(args: argparse.Namespace) -> dict[str, Any]:
    """The options of everything that were given; CommandLineError for what excludes each other."""
    kinds = {
        "--everything": args.everything is not None,
        "--prompts": args.prompts is not None,
        "--embeddings": args.embeddings,
    }
    given = [name for name, is_given in kinds.items() if is_given]
    if len(given) > 1:
        raise CommandLineError(f"{given[0]} and {given[1]} exclude each other (name one)")
    names = {option[2:].replace("-", "_"): kind for option, kind, _ in AUTOMATIC}
    for text in args.everything or ():
        name, _, value = text.partition("=")
        if name not in names:
            raise CommandLineError(f"--everything {name}: there are {', '.join(names)}")
        try:
            setattr(args, name, names[name](value))
        except argparse.ArgumentTypeError as error:
            raise CommandLineError(f"--everything {name}: {error}") from None
    options = [name for name in names if getattr(args, name) is not None]
    prompted = args.prompts is not None
    if options and (prompted or args.embeddings):
        option = "--" + options[0].replace("_", "-")
        raise CommandLineError(f"{option} is for segmenting everything (leave it out)")
    if not prompted and (args.all_masks or args.prompt_with != prompt_files.KINDS[0]):
        option = "--all-masks" if args.all_masks else "--prompt-with"
        raise CommandLineError(f"{option} is for --prompts (leave it out)")
    return {name: getattr(args, name) for name in options}


def _work(
    args: argparse.Namespace,
    options: dict[str, Any],
    source: Source,
    destination: Destination,
    console: Console,
) -> tuple[Source, Work, dict[str, Any]]:
    """What to do with which entries, and what else the manifest keeps."""
    from samfast.cluster.work import EmbeddingWork, Everything, PromptedWork

    extra: dict[str, Any] = {"source": args.source}
    if args.embeddings:
        return source, EmbeddingWork(destination.below("embeddings")), extra
    if args.prompts is None:
        return source, Everything(options), extra
    prompts = prompt_files.read_prompts(args.prompts, args.prompt_with)
    names = prompts.names_of([entry.key for entry in source.entries])
    skipped = len(source.entries) - len(names)
    if not names:
        raise CommandLineError(
            f"--prompts {args.prompts}: it names none of the images (it should name them by their "
            f"path or file name, such as {source.entries[0].key})"
        )
    if skipped:
        console.warn(f"{plural(skipped, 'image')} skipped, which {args.prompts} does not name")
        source = replace(source, entries=[each for each in source.entries if each.key in names])
    work = PromptedWork(
        {key: prompts.objects[name] for key, name in names.items()},
        args.all_masks,
        {key: prompts.image_ids[n] for key, n in names.items() if n in prompts.image_ids},
    )
    return source, work, {**extra, "categories": list(prompts.categories)}


def _asked(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """How the engine was asked for, with what tells whether the checkpoint's file is the same."""
    asked = {
        "model": args.model,
        "checkpoint": args.checkpoint,
        "recipe": args.recipe,
        "device": args.device,
        "options": options,
    }
    if args.checkpoint is not None and os.path.isfile(args.checkpoint):
        status = os.stat(args.checkpoint)
        asked["file"] = [status.st_size, status.st_mtime_ns]
    return asked


def _finished(
    args: argparse.Namespace,
    options: dict[str, Any],
    destination: Destination,
    source: Source,
    work: Work,
) -> Manifest | None:
    """The manifest of this very run, if it lists all shards; the model is not loaded for it.

    None where that cannot be told without the model, or something is left to do or to mend.
    """
    from samfast.cluster.manifest import open_manifest, read_manifest
    from samfast.cluster.run_identity import EngineIdentity, run_identity
    from samfast.errors import DatasetError

    try:
        stored = read_manifest(destination)
    except DatasetError:
        return None
    if stored is None or stored.asked != _asked(args, options):
        return None
    before = stored.identity
    engine = EngineIdentity(
        before.model, before.weights, before.recipe, before.settings, before.device, {}
    )
    identity = run_identity(engine, work, source, args.shard_size or before.shard_size)
    if work.kind == "everything":  # the options were compared as they were asked for
        identity = replace(identity, options=before.options)
    if identity != before:
        return None
    complaints: list[str] = []
    manifest = open_manifest(destination, identity, stored.asked, complaints.append)
    as_listed = manifest.shards == stored.shards and not complaints
    return manifest if manifest.finished and as_listed else None


def _prepare(
    args: argparse.Namespace,
    options: dict[str, Any],
    destination: Destination,
    source: Source,
    work: Work,
    extra: dict[str, Any],
    ready: Devices,
    console: Console,
) -> Manifest:
    """The manifest with the shards that are done."""
    from samfast.cluster.manifest import open_manifest, stored_identity
    from samfast.cluster.run_identity import run_identity
    from samfast.cluster.shards import SHARD_SIZE

    stored = stored_identity(destination, work.kind)
    shard_size = args.shard_size or (SHARD_SIZE if stored is None else stored.shard_size)
    identity = run_identity(ready.identity, work, source, shard_size)
    manifest = open_manifest(destination, identity, _asked(args, options), console.warn)
    manifest.extra = extra
    if args.retry_failures:
        for number in list(manifest.failures):
            manifest.remove(number)
    return manifest


def _do(
    args: argparse.Namespace,
    ready: Devices,
    work: Work,
    source: Source,
    manifest: Manifest,
    write: WriteEvent,
    console: Console,
) -> int:
    """Do what is left, and say how it went."""
    from samfast.cluster.run_shards import Watch

    identity, done = manifest.identity, manifest.images + manifest.failed
    left = identity.entries - done
    console.warn(
        f"{plural(left, 'image')} in {plural(identity.shards - len(manifest.shards), 'shard')}"
        + (f"; {plural(done, 'image')} skipped, done before" if done else "")
    )
    write({"event": "start", **_counts(manifest), "left": left})
    with console.progress(left, "image") as advance:
        progress = RunProgress(console, write, advance, left, manifest.failed)
        watch = Watch(progress.on_image, progress.on_shard)
        try:
            whole = ready.run(work, source, manifest, max_failures=args.max_failures, watch=watch)
            reason = None if whole else f"more than {args.max_failures} images failed"
        except SamfastError as error:
            whole, reason = False, str(error)
        except BaseException as ended:  # it is said how to go on, then raised
            if not isinstance(ended, Exception):  # Ctrl-C
                console.warn(f"{progress.describe()}; the same command goes on from here")
            raise
    if reason is not None:
        console.warn(f"{reason}; what is written is whole, and the same command goes on from here")
    console.warn(progress.describe())
    _end(manifest, write, reason)
    return 1 if manifest.failed or not whole else 0


def _nothing_left(manifest: Manifest, write: WriteEvent, console: Console) -> int:
    """Say that all is done; 0, or 1 if some image failed."""
    done = manifest.images + manifest.failed
    console.warn(f"nothing is left: {plural(done, 'image')} done before, {manifest.failed} failed")
    write({"event": "start", **_counts(manifest), "left": 0})
    _end(manifest, write, None)
    return 1 if manifest.failed else 0


def _end(manifest: Manifest, write: WriteEvent, reason: str | None) -> None:
    write({"event": "end", **_counts(manifest), "finished": manifest.finished, "reason": reason})


def _counts(manifest: Manifest) -> dict[str, Any]:
    """What events say of a run."""
    identity = manifest.identity
    return {
        "destination": manifest.destination.url,
        "model": identity.model,
        "recipe": identity.recipe,
        "device": identity.device,
        "work": identity.work,
        "entries": identity.entries,
        "shards": identity.shards,
        "shards_done": len(manifest.shards),
        "images": manifest.images,
        "failed": manifest.failed,
    }


@contextmanager
def _only_one(destination: Destination) -> Iterator[None]:
    """Make a folder of results, and keep a second run out of it while the block runs."""
    if destination.folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    from samfast.cli.segment_command import make_writable

    make_writable(destination.folder)
    try:
        with FileLock(destination.folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise CommandLineError(
            f"--out {destination.url}: another samfast run writes there (wait for it to end)"
        ) from None
