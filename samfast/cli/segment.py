"""`samfast segment`: masks of images, written to files."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import inputs, segment_everything, segment_prompted
from samfast.cli.console import CommandLineError, Console
from samfast.cli.inputs import Job
from samfast.cli.options import (
    add_model_options,
    fraction,
    load_model,
    non_negative_int,
    positive_int,
)
from samfast.cli.segment_everything import Read, Records
from samfast.cli.segment_prompted import Target
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage

OUT = "samfast-output"

ENDINGS = {"coco": ".json", "png": ".png", "npz": ".npz"}

OVERLAY = ".overlay.png"

DESCRIPTION = """\
Find the masks of images and write them to files. Without prompts: everything in each image."""

EPILOG = """\
prompts:
  Coordinates are pixels of the image as it is shown, from its upper left corner; they are asked of
  every image. All --point values together are one object (label 1, the default: on it; 0: not on
  it). Each --box is one object. With exactly one --box the points describe that box's object. A
  single click is ambiguous: the best of three masks is kept (--all-masks keeps all three).

files:
  coco  DIR/<stem>.json, a list of records with segment_anything's keys: segmentation (COCO RLE),
        area, bbox (XYWH), predicted_iou, point_coords, stability_score, crop_box; for prompts
        point_labels and input_box too
  png   DIR/<stem>.png, a label map: 0 is background, i the i-th record; where masks overlap the
        smaller is on top
  npz   DIR/<stem>.npz, the masks and the other keys as arrays
  Images of the same stem get numbers (photo, photo-2), and a message says so. The path of each file
  written is printed on stdout. A file that fails is reported on stderr, the others are done, and
  the exit code is 1. Ctrl-C leaves finished files whole."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "segment",
        help="find masks: of everything, or of what points and boxes show",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a directory (not searched deeper) or a glob",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--point",
        action="append",
        default=[],
        type=segment_prompted.parse_point,
        metavar="X,Y[,LABEL]",
        help="a click",
    )
    prompts.add_argument(
        "--box",
        action="append",
        default=[],
        type=segment_prompted.parse_box,
        metavar="X0,Y0,X1,Y1",
        help="a box",
    )
    prompts.add_argument(
        "--all-masks", action="store_true", help="three masks for each object, best first"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", default=OUT, metavar="DIR", help=f"made if absent (default: {OUT})"
    )
    output.add_argument("--format", choices=tuple(ENDINGS), default="coco", help="(default: coco)")
    output.add_argument(
        "--overlay", action="store_true", help=f"also draw the masks: <stem>{OVERLAY}"
    )
    automatic = parser.add_argument_group(
        "everything", "how images are searched when there is no prompt"
    )
    for option, kind, text in AUTOMATIC:
        automatic.add_argument(
            option, type=kind, metavar="N" if kind is not fraction else "X", help=text
        )
    add_model_options(parser)
    parser.set_defaults(run=run)


AUTOMATIC = (
    ("--points-per-side", positive_int, "clicks along each side of the grid (default: 32)"),
    ("--points-per-batch", positive_int, "clicks decoded at once (default: 64)"),
    ("--pred-iou-thresh", fraction, "least predicted IoU of a mask (default: 0.88)"),
    ("--stability-score-thresh", fraction, "least stability score of a mask (default: 0.95)"),
    (
        "--crop-n-layers",
        non_negative_int,
        "also search crops of the image, in so many layers (default: 0)",
    ),
    (
        "--min-mask-region-area",
        non_negative_int,
        "remove pieces and holes smaller than this, px (default: 0)",
    ),
)
"""Options of the automatic search, by segment_anything's names; those not given keep its
defaults."""


def run(args: argparse.Namespace, console: Console) -> int:
    """Segment every image; 0, or 1 if some input failed."""
    wanted = segment_prompted.targets(args.point, args.box)
    automatic = automatic_options(args, prompted=bool(wanted))
    out = Path(args.out)
    endings = [ENDINGS[args.format], OVERLAY] if args.overlay else [ENDINGS[args.format]]
    plan = inputs.plan(args.images, out, endings)
    for message in (*plan.failures, *plan.renamings):
        console.warn(message)
    failed = len(plan.failures)
    if plan.jobs:
        make_writable(out)
        sam = load_model(args)
        work = Work(sam, wanted, automatic, args.all_masks, out, args.format, args.overlay, console)
        with console.progress(len(plan.jobs), "image") as advance:
            if not wanted:
                failed += work.everything(plan.jobs, advance)
            for start in range(0, len(plan.jobs) if wanted else 0, sam.batch_size):
                group = plan.jobs[start : start + sam.batch_size]
                failed += work.group(group)
                advance(len(group))
    return 1 if failed else 0


def automatic_options(args: argparse.Namespace, *, prompted: bool) -> dict[str, Any]:
    """Those options of the automatic search that were given; CommandLineError if for nothing."""
    names = [option[2:].replace("-", "_") for option, _, _ in AUTOMATIC]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and prompted:
        option = "--" + next(iter(given)).replace("_", "-")
        raise CommandLineError(
            f"{option} is for segmenting everything: leave out it, or --point and --box"
        )
    if args.all_masks and not prompted:
        raise CommandLineError(
            "--all-masks is for --point and --box (leave it out to segment everything)"
        )
    return given


def make_writable(folder: Path) -> None:
    """Make the folder if it is absent; CommandLineError if nothing can be written into it."""
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


class Work:
    """What `run` does to images."""

    def __init__(
        self,
        sam: SamFast,
        wanted: tuple[Target, ...],
        automatic: dict[str, Any],
        all_masks: bool,
        out: Path,
        form: str,
        overlay: bool,
        console: Console,
    ) -> None:
        self.sam = sam
        self.wanted = wanted
        self.automatic = automatic
        self.all_masks = all_masks
        self.out = out
        self.form = form
        self.overlay = overlay
        self.console = console

    def everything(self, jobs: Sequence[Job], advance: Callable[[int], None]) -> int:
        """Find everything in each of the images; how many of them failed. Each failure is one line
        on stderr.
        """
        failed = 0
        for read, found in segment_everything.find(self.sam, jobs, self.automatic):
            image = self._told(read)
            if image is not None:
                failed += self._finish(read.job, image, found)
            else:
                failed += 1
            advance(1)
        return failed

    def group(self, jobs: Sequence[Job]) -> int:
        """Answer the prompts of the images together; how many failed. Each failure is one line on
        stderr.
        """
        told = [(job, self._told(segment_everything.read(job))) for job in jobs]
        loaded = [(job, image) for job, image in told if image is not None]
        return len(jobs) - len(loaded) + self._segment(loaded)

    def _told(self, read: Read) -> LoadedImage | None:
        """The image, once what there is to say about it has been said."""
        if read.image is None:
            assert read.error is not None
            self._report(read.job, read.error)
            return None
        for note in read.image.notes:
            self.console.warn(f"{read.job.source}: {note}")
        return read.image

    def _segment(self, loaded: Sequence[tuple[Job, LoadedImage]]) -> int:
        if not loaded:
            return 0
        import torch

        try:
            embeddings = self.sam.embed([image for _, image in loaded])
            records = segment_prompted.answer(self.sam, embeddings, self.wanted, self.all_masks)
        except (SamfastError, torch.OutOfMemoryError) as error:
            if len(loaded) > 1:
                # One image's trouble is no reason to lose its neighbours in the batch.
                return sum(self._segment([one]) for one in loaded)
            return self._report(loaded[0][0], error)
        return sum(
            self._finish(job, image, own) for (job, image), own in zip(loaded, records, strict=True)
        )

    def _finish(self, job: Job, image: LoadedImage, found: Records | Exception) -> int:
        """Write what was found, or report why there is nothing; 1 for a failure."""
        if isinstance(found, Exception):
            return self._report(job, found)
        try:
            self._write(job, image, found)
        except SamfastError as error:
            return self._report(job, error)
        return 0

    def _write(self, job: Job, image: LoadedImage, records: list[dict[str, Any]]) -> None:
        from samfast import outputs

        masks = [record["segmentation"] for record in records]
        path = self.out / (job.stem + ENDINGS[self.form])
        if self.form == "coco":
            outputs.write_records(path, records)
        elif self.form == "png":
            outputs.write_labels(path, masks, image.size)
        else:
            outputs.write_records_npz(path, records, image.size)
        self.console.result(str(path))
        if self.overlay:
            path = self.out / (job.stem + OVERLAY)
            outputs.write_overlay(path, image.pixels, masks, segment_prompted.drawn(self.wanted))
            self.console.result(str(path))

    def _report(self, job: Job, error: Exception) -> int:
        name = str(job.source)
        text = "the device's memory ran out (use a smaller --batch-size or --points-per-batch)"
        if isinstance(error, SamfastError):
            # The engine counts images; here they have names.
            text = re.sub(r"^image \d+, ", "", str(error).removeprefix(f"{name}: "))
        self.console.warn(f"{name}: {text}")
        return 1
