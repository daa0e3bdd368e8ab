"""`samfast segment`: find masks in images and write them to files."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import image_files
from samfast.cli.common_options import (
    add_automatic_options,
    add_command,
    add_images_argument,
    add_model_options,
    automatic_options,
    load_model,
)
from samfast.cli.console import CommandLineError, Console, printable
from samfast.cli.segment_everything import ReadFile, Records, segment_everything
from samfast.cli.segment_prompted import (
    PromptedObject,
    parse_box,
    parse_point,
    prompted_objects,
    prompts_of,
    segment_prompted,
)
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.images import LoadedImage

OUT = "samfast-output"

ENDINGS = {"coco": ".json", "png": ".png", "npz": ".npz"}

OVERLAY = ".overlay.png"

DESCRIPTION = """\
Find masks in images and write them to files: of the objects that --point and --box describe, or,
without prompts, of everything in each image."""

EPILOG = """\
prompts:
  Coordinates are pixels of the image as displayed, from its upper left corner, and apply to every
  image. All --point values together describe one object: label 1 (the default) lies on it, label 0
  outside. Each --box describes one object. With exactly one --box, the points describe the same
  object. A single click is ambiguous: the best of three masks is kept (--all-masks keeps all).

files:
  coco  DIR/<stem>.json, a list of records with segment_anything's keys: segmentation (COCO RLE),
        area, bbox (XYWH), predicted_iou, point_coords, stability_score, crop_box; with prompts also
        point_labels and input_box
  png   DIR/<stem>.png, a label map: 0 is background, i the i-th record; where masks overlap, the
        smaller one is on top
  npz   DIR/<stem>.npz, the masks and the other keys as arrays
  Images of the same stem get numbers (photo, photo-2), and a message says so. The path of each
  written file is printed on stdout. If an image fails, a message is printed on stderr, the other
  images are still processed, and the exit code is 1. Ctrl-C leaves finished files intact."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "segment",
        run,
        help="find masks in images: of prompted objects, or of everything",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_images_argument(parser, "+")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--point",
        action="append",
        default=[],
        type=parse_point,
        metavar="X,Y[,LABEL]",
        help="a click; repeat for more",
    )
    prompts.add_argument(
        "--box",
        action="append",
        default=[],
        type=parse_box,
        metavar="X0,Y0,X1,Y1",
        help="a box around an object; repeat for more",
    )
    prompts.add_argument(
        "--all-masks", action="store_true", help="keep three masks for each object, best first"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        default=OUT,
        metavar="DIR",
        help=f"the directory to write to, created if missing (default: {OUT})",
    )
    output.add_argument(
        "--format",
        choices=tuple(ENDINGS),
        default="coco",
        help="how to write masks, see below (default: coco)",
    )
    output.add_argument(
        "--overlay",
        action="store_true",
        help=f"also draw the masks over the image: <stem>{OVERLAY}",
    )
    add_automatic_options(
        parser.add_argument_group("everything", "how to search each image without prompts")
    )
    add_model_options(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Segment every image; 0, or 1 if some input failed."""
    objects = prompted_objects(args.point, args.box)
    automatic = _automatic_options(args, prompted=bool(objects))
    out = Path(args.out)
    endings = [ENDINGS[args.format], OVERLAY] if args.overlay else [ENDINGS[args.format]]
    files, failed = image_files.plan(args.images, out, endings, console)
    if files:
        make_writable(out)
        sam = load_model(args)
        writer = ResultWriter(out, args.format, args.overlay, objects, console)
        with console.progress(len(files), "image") as advance:
            for read, answer in (
                segment_prompted(sam, files, objects, args.all_masks)
                if objects
                else segment_everything(sam, files, automatic)
            ):
                failed += not writer.write(read, answer)
                advance(1)
    return 1 if failed else 0


def _automatic_options(args: argparse.Namespace, *, prompted: bool) -> dict[str, Any]:
    """The options of the automatic search; CommandLineError for options without effect."""
    options = automatic_options(args)
    if options and prompted:
        option = "--" + next(iter(options)).replace("_", "-")
        raise CommandLineError(
            f"{option} is for segmenting everything (leave it out, or --point and --box)"
        )
    if args.all_masks and not prompted:
        raise CommandLineError(
            "--all-masks is for --point and --box (leave it out to segment everything)"
        )
    return options


def make_writable(folder: Path) -> None:
    """Make the folder of --out if it is missing; CommandLineError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise CommandLineError(f"--out {folder}: that is a file (name a directory)") from None
    except OSError as error:
        raise CommandLineError(
            f"--out {folder}: cannot be written: {error.strerror} (choose another directory)"
        ) from None


@dataclass(frozen=True)
class ResultWriter:
    """Writes the records of images to files, and reports images that failed."""

    out: Path
    format: str
    overlay: bool
    objects: Sequence[PromptedObject]
    console: Console

    def write(self, read: ReadFile, answer: Records | Exception) -> bool:
        """Write one image's files and print their paths; on failure print why and return False."""
        if read.image is not None:
            for note in read.image.notes:
                self.console.warn(f"{printable(str(read.file.path))}: {note}")
            if not isinstance(answer, Exception):
                try:
                    self._write(read.file.stem, read.image, answer)
                    return True
                except SamfastError as error:
                    answer = error
        assert isinstance(answer, Exception)
        path = printable(str(read.file.path))
        text = "the device's memory ran out (use a smaller --batch-size or --points-per-batch)"
        if isinstance(answer, SamfastError):
            # The engine numbers images; on the command line they have names.
            text = re.sub(r"^image \d+(, |: )", "", str(answer).removeprefix(f"{path}: "))
        self.console.warn(f"{path}: {text}")
        return False

    def _write(self, stem: str, image: LoadedImage, records: Records) -> None:
        from samfast import outputs

        masks = [record["segmentation"] for record in records]
        path = self.out / (stem + ENDINGS[self.format])
        if self.format == "coco":
            outputs.write_records(path, records)
        elif self.format == "png":
            outputs.write_labels(path, masks, image.size)
        else:
            outputs.write_records_npz(path, records, image.size)
        self.console.result(str(path))
        if self.overlay:
            path = self.out / (stem + OVERLAY)
            legend = outputs.legend_of(records)
            outputs.write_overlay(path, image.pixels, masks, prompts_of(self.objects), legend)
            self.console.result(str(path))
