"""`samfast segment`: find masks in images and write them to files."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samfast.cli import image_files, prompt_files
from samfast.cli.common_options import (
    add_automatic_options,
    add_command,
    add_images_argument,
    add_json_file_option,
    add_model_options,
    automatic_options,
    load_model,
)
from samfast.cli.console import CommandLineError, Console, check_output_file
from samfast.cli.image_files import ImageFile
from samfast.cli.prompt_files import Prompting
from samfast.cli.scene_options import HELP as SCENES_HELP
from samfast.cli.scene_options import add_scene_options
from samfast.cli.segment_formats import FILES, FORMATS, OVERLAY, RECORDS, Format, TakeFormats
from samfast.cli.segment_job import SegmentJob
from samfast.cli.segment_prompted import parse_box, parse_point, prompted_objects
from samfast.cli.segment_report import Tally, plural
from samfast.cli.segment_results import ResultWriter
from samfast.cli.segment_scenes import check_scene_options, segment_scenes

OUT = "samfast-output"

DESCRIPTION = """\
Find masks in images and write them to files: of the objects that --point, --box or --prompts
describe, or, without prompts, of everything in each image."""

EPILOG = f"""\
prompts:
  Coordinates are pixels of the image as displayed, from its upper left corner, and apply to every
  image. All --point values together describe one object: label 1 (the default) lies on it, label 0
  outside. Each --box describes one object. With exactly one --box, the points describe the same
  object. A single click is ambiguous: the best of three masks is kept (--all-masks keeps all).
{prompt_files.HELP}

files:
{FILES}
  --coco FILE is one COCO instances file for all images: sizes as displayed, compressed RLE, bbox
  XYWH around all pixels of a mask, score (the predicted IoU). It implies the format coco, from
  which a later run with --skip-existing takes what is done already, and appears at the end.

scenes:
{SCENES_HELP}

  Images of the same stem get numbers (photo, photo-2), and a message says so. The path of each
  written file is printed on stdout, or with --json - a line of JSON for each image as soon as it is
  done: image, name, height, width, files and records, or error. If an image fails, a message is
  printed on stderr, the other images are still processed, and the exit code is 1. Ctrl-C leaves
  finished files intact; the same command with --skip-existing goes on."""


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
    # Images may also follow the names of --format.
    add_images_argument(parser, "*")
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="search the subdirectories of directories too; results keep the tree",
    )
    _add_prompt_options(parser.add_argument_group("prompts"))
    _add_output_options(parser.add_argument_group("output"))
    add_json_file_option(parser)
    add_scene_options(parser.add_argument_group("scenes", "images larger than the model's window"))
    add_automatic_options(
        parser.add_argument_group("everything", "how to search each image without prompts")
    )
    add_model_options(parser)
    parser.set_defaults(images_after_format=())


def _add_prompt_options(group: Any) -> None:
    group.add_argument(
        "--point",
        action="append",
        default=[],
        type=parse_point,
        metavar="X,Y[,LABEL]",
        help="a click; repeat for more",
    )
    group.add_argument(
        "--box",
        action="append",
        default=[],
        type=parse_box,
        metavar="X0,Y0,X1,Y1",
        help="a box around an object; repeat for more",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of each image: CSV, JSON or COCO instances, see below",
    )
    group.add_argument(
        "--all-masks", action="store_true", help="keep three masks for each object, best first"
    )


def _add_output_options(group: Any) -> None:
    group.add_argument(
        "--out",
        default=OUT,
        metavar="DIR",
        help=f"the directory to write to, created if missing (default: {OUT})",
    )
    group.add_argument(
        "--format",
        nargs="+",
        action=TakeFormats,
        metavar="NAME",
        help=f"how to write masks, one or more of {', '.join(FORMATS)}, see below (default: "
        f"{RECORDS})",
    )
    group.add_argument(
        "--coco", metavar="FILE", help="also write one COCO instances file for all images"
    )
    group.add_argument(
        "--overlay",
        action="store_true",
        help=f"also draw the masks over the image: {OVERLAY.target.format('<stem>')}",
    )
    group.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip images whose files are all there, as after an interrupted run",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Segment every image; 0, or 1 if some input failed."""
    images = [*args.images, *args.images_after_format]
    if not images:
        raise CommandLineError("no IMAGE is named (see samfast segment --help)")
    check_scene_options(args)
    if args.tile is not None:
        return segment_scenes(images, args, console)
    prompts = _prompts(args)
    options = _automatic_options(args, prompted=prompts is not None)
    out, formats = Path(args.out), _formats(args)
    targets = [each.target for each in formats.values()]
    files, failed = image_files.plan(images, out, targets, console, recursive=args.recursive)
    _check_coco_file(args, files, [out / t.format(file.stem) for file in files for t in targets])
    tally = Tally(failed=failed)
    prompting = None
    if prompts is not None:
        prompting = prompts(files)
        tally.skipped = len(files) - len(prompting.objects)
        _report_unprompted(args.prompts, files, prompting, console)
        files = [file for file in files if file in prompting.objects]
    if files:
        make_writable(out)
        SegmentJob(
            files,
            ResultWriter(out, formats, prompting),
            prompting,
            options,
            all_masks=args.all_masks,
            coco=args.coco,
            json=args.json,
            skip_existing=args.skip_existing,
            console=console,
            tally=tally,
        ).run(lambda: load_model(args))
    return 1 if tally.failed else 0


def _prompts(args: argparse.Namespace) -> Callable[[Sequence[ImageFile]], Prompting] | None:
    """What gives images their objects; None: there are no prompts."""
    objects = prompted_objects(args.point, args.box)
    if args.prompts is not None:
        if objects:
            raise CommandLineError("--prompts has prompts of its own (leave --point and --box out)")
        return prompt_files.read_prompts(args.prompts).of
    if not objects:
        return None
    return lambda files: Prompting(dict.fromkeys(files, objects))


def _automatic_options(args: argparse.Namespace, *, prompted: bool) -> dict[str, Any]:
    """The options of the automatic search; CommandLineError for options without effect."""
    options = automatic_options(args)
    if options and prompted:
        option = "--" + next(iter(options)).replace("_", "-")
        raise CommandLineError(
            f"{option} is for segmenting everything (leave it out, or the prompts)"
        )
    if args.all_masks and not prompted:
        raise CommandLineError(
            "--all-masks is for --point, --box and --prompts (leave it out to segment everything)"
        )
    return options


def _formats(args: argparse.Namespace) -> dict[str, Format]:
    """The files of each image by the names of their formats."""
    names = list(args.format or [RECORDS])
    if args.coco is not None and RECORDS not in names:
        names.append(RECORDS)
    formats = {name: FORMATS[name] for name in names}
    return {**formats, "overlay": OVERLAY} if args.overlay else formats


def _check_coco_file(
    args: argparse.Namespace, files: Sequence[ImageFile], results: Sequence[Path]
) -> None:
    """CommandLineError if --coco FILE cannot be written, or would overwrite anything else."""
    if args.coco is None:
        return
    if Path(args.coco).absolute().parent != Path(args.out).absolute():
        check_output_file("--coco", args.coco)
    others = [*results, *(file.path for file in files), *([args.prompts] if args.prompts else ())]
    place = os.path.realpath(args.coco)
    overwritten = next((each for each in others if os.path.realpath(each) == place), None)
    if overwritten is not None:
        raise CommandLineError(f"--coco {args.coco} would overwrite {overwritten} (name another)")


def _report_unprompted(
    path: Path, files: Sequence[ImageFile], prompting: Prompting, console: Console
) -> None:
    """Say how many images have no prompts; CommandLineError if none has."""
    count = len(files) - len(prompting.objects)
    if count and count == len(files):
        raise CommandLineError(
            f"--prompts {path}: it names none of the images (it should name them by their path or "
            f"file name, such as {files[0].name})"
        )
    if count:
        console.warn(f"{plural(count, 'image')} skipped, which {path} does not name")


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
