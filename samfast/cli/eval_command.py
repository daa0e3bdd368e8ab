"""`samfast eval`: accuracy on a data set in COCO's instances format."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.cli.common_options import (
    add_data_options,
    add_max_pixels_option,
    add_model_options,
    check_data,
    load_model,
)
from samfast.cli.console import CommandLineError, Console, check_json_destination, write_json

DESCRIPTION = """\
Score a model's masks against annotated ones: mean IoU over masks, for point and box prompts that
are made from the annotations."""

EPILOG = """\
miou scores the mask of the highest predicted IoU, miou_oracle the best of the three that a point
gets, filled_box the annotation's box as if it were the mask. In the JSON by_category repeats them
for each category, by_source, which is printed too, for each value of the images' "source" key, if
they have one. Crowds are left out.

COCO val2017: download http://images.cocodataset.org/zips/val2017.zip and
http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both, then
  samfast eval --images val2017 --annotations annotations/instances_val2017.json --prompts point
  --point-rule seed"""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "eval",
        help="score the masks against an annotated data set",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_options(parser, option="data", point_rule="edt")
    add_max_pixels_option(parser)
    parser.add_argument(
        "--prompts", choices=("point", "box", "both"), default="both", help="(default: both)"
    )
    parser.add_argument("--json", metavar="FILE", help='write the result as JSON; "-": on stdout')
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate; 0, or 1 if some image could not be used."""
    check_json_destination(args.json)
    if not check_data(args, "DATA", "eval"):
        raise CommandLineError(
            "a data set is needed: DATA, a directory with images/ and annotations.json, or "
            "--images DIR with "
            "--annotations FILE (see samfast eval --help)"
        )
    from samfast.device.machine import resolve_device

    resolve_device(args.device)
    from samfast.bench import accuracy, coco_dataset

    data = coco_dataset.open_dataset(args.data, images=args.images, annotations=args.annotations)
    sam = load_model(args)
    total = len(data) if args.limit is None else min(args.limit, len(data))
    failures = 0

    def failed(message: str) -> None:
        nonlocal failures
        failures += 1
        console.warn(message)

    with console.progress(total, "image") as advance:
        result = accuracy.evaluate(
            sam,
            data,
            prompts=args.prompts,
            min_area=args.min_area,
            point_rule=args.point_rule,
            limit=args.limit,
            batch_size=sam.batch_size,
            progress=advance,
            on_error=failed,
        )
    if args.json is not None:
        write_json(result, args.json)
    if args.json != "-":
        for line in describe(result):
            console.result(line)
    return 1 if failures else 0


def describe(result: dict[str, Any]) -> list[str]:
    """The result for people, a line each."""
    lines = [
        f"{result['model']}, recipe {result['recipe']}: {result['images']} images, "
        f"{result['masks']} masks, "
        f"{result['images_per_second']:.3g} images/s"
    ]
    groups = {"all": result, **result.get("by_source", {})}
    width = max(map(len, groups))
    for name, group in groups.items():
        for prompt in ("point", "box"):
            scores = group.get(prompt)
            if scores:
                text = "  ".join(f"{key} {_score(value)}" for key, value in scores.items())
                lines.append(f"{name:<{width}}  {prompt:<5}  {text}")
    return lines


def _score(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
