"""`samfast convert`: the masks of `samfast run` as COCO, YOLO or GeoJSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from samfast.cli.common_options import add_command
from samfast.cli.console import CommandLineError, Console, check_output_file, printable
from samfast.cli.prompt_files import OBJECT
from samfast.cli.segment_report import plural
from samfast.errors import DatasetError

if TYPE_CHECKING:
    from samfast.cluster.manifest import Manifest
    from samfast.cluster.stored_masks import StoredImage

PLACES = {"coco": "instances.json", "yolo": "yolo", "geojson": "geojson"}
"""Below the results by default: a file for COCO, folders for the others."""

TARGETS = {"yolo": "labels/{}.txt", "geojson": "{}.geojson"}
"""The file of an image in such a folder."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "convert",
        run,
        help="masks of samfast run as COCO, YOLO or GeoJSON",
        description="Make COCO instances, YOLO labels or GeoJSON of the masks that `samfast run` "
        "wrote.",
        epilog="""\
files:
  coco     one COCO instances file (default: DEST/instances.json), with the ids of --prompts
           FILE where the run had one, as `samfast segment --coco` writes it
  yolo     labels/<image>.txt and data.yaml in a folder (default: DEST/yolo)
  geojson  <image>.geojson in a folder (default: DEST/geojson), in pixels, y downward

example:
  samfast convert results --to coco --out instances.json""",
    )
    parser.add_argument("results", metavar="DEST", help="the --out of samfast run")
    parser.add_argument("--to", required=True, choices=tuple(PLACES), help="the format")
    parser.add_argument(
        "--out", metavar="PATH", help="the file (coco) or folder to write (default: below DEST)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the files; 0, or 1 if the run has not done all images."""
    manifest, categories = _results(args.results, console)
    out = _place(args, manifest)
    from samfast.cluster.stored_masks import stored_images

    images = stored_images(manifest)
    with console.progress(manifest.images, "image") as advance:
        if args.to == "coco":
            masks = _write_coco(out, _counted(images, advance), manifest, categories)
        else:
            masks = _write_files(args.to, out, _counted(images, advance), categories, console)
    console.result(str(out))
    console.warn(f"{plural(manifest.images, 'image')} with {plural(masks, 'mask')}")
    missing = manifest.identity.entries - manifest.images - manifest.failed
    if missing:
        console.warn(f"{plural(missing, 'image')} of the run not done yet; run it again, then this")
    return 1 if missing else 0


def _results(url: str, console: Console) -> tuple[Manifest, list[dict[str, Any]]]:
    """The shards of a run of masks, and its categories."""
    from samfast.cluster.destination import Destination
    from samfast.cluster.manifest import MANIFEST, open_manifest, read_manifest

    if "://" not in url and not Path(url).expanduser().is_dir():
        raise CommandLineError(f"{url}: there is no such folder (name the --out of samfast run)")
    destination = Destination(url)
    try:
        stored = read_manifest(destination)
    except DatasetError as error:
        raise CommandLineError(f"{error}; samfast run makes it again") from None
    if stored is None:
        raise CommandLineError(f"{url}: no {MANIFEST} (name the --out of samfast run)")
    if stored.identity.work == "embeddings":
        raise CommandLineError(f"{url}: embeddings, which have no masks")
    manifest = open_manifest(destination, stored.identity, stored.asked, console.warn)
    return manifest, stored.categories


def _place(args: argparse.Namespace, manifest: Manifest) -> Path:
    """Where to write; CommandLineError where that cannot be."""
    if args.out is not None:
        out = Path(args.out)
    elif manifest.destination.folder is not None:
        out = manifest.destination.folder / PLACES[args.to]
    else:
        raise CommandLineError(f"{args.results} is a URL (name a local place with --out)")
    if args.to == "coco":
        check_output_file("--out", str(out))
    return out


def _counted(images: Iterator[StoredImage], advance: Any) -> Iterator[StoredImage]:
    for image in images:
        yield image
        advance(1)


def _write_coco(
    path: Path,
    images: Iterator[StoredImage],
    manifest: Manifest,
    categories: list[dict[str, Any]],
) -> int:
    """Write one COCO instances file; returns its number of masks."""
    from samfast.outputs import write_coco

    masks = 0
    options = manifest.identity.options
    # Ids of annotations differ only if each has one mask.
    keep_ids = bool(options.get("annotation_ids")) and not options.get("all_masks")
    with write_coco(path, categories, keep_ids=keep_ids) as coco:
        for number, image in enumerate(images, start=1):
            image_id = number if image.source_id is None else image.source_id
            coco.add(image_id, image.key, image.size, image.records)
            masks += len(image.records)
    return masks


def _write_files(
    to: str,
    folder: Path,
    images: Iterator[StoredImage],
    categories: list[dict[str, Any]],
    console: Console,
) -> int:
    """Write a file for each image; returns the number of masks."""
    from samfast.outputs import write_geojson, write_yolo, write_yolo_dataset

    classes = {each["id"]: index for index, each in enumerate(categories)}
    taken: set[str] = set()
    masks = 0
    for image in images:
        path = folder / TARGETS[to].format(_free_stem(image.key, taken, console))
        path.parent.mkdir(parents=True, exist_ok=True)
        if to == "yolo":
            write_yolo(path, image.records, classes)
        else:
            write_geojson(path, image.records)
        masks += len(image.records)
    if to == "yolo":
        names = [str(each["name"]) for each in categories] or [OBJECT]
        folder.mkdir(parents=True, exist_ok=True)
        write_yolo_dataset(folder / "data.yaml", names)
    return masks


def _free_stem(key: str, taken: set[str], console: Console) -> str:
    """The path of an image's file below the folder, without its ending, that no other image has.

    Images of a list may be anywhere: their files stay below the folder.
    """
    path = PurePosixPath(key.replace("://", "/"))
    parts = [part for part in path.parts if part not in ("/", "..")]
    plain = PurePosixPath(*parts).with_suffix("").as_posix()
    # Names are compared without case: on some file systems A and a are one file.
    candidates = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
    stem = next(each for each in candidates if each.casefold() not in taken)
    taken.add(stem.casefold())
    if stem != plain:
        console.warn(printable(f"{key}: its file is called {stem}.*, for another has its name"))
    return stem
