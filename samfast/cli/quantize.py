"""`samfast quantize`: a checkpoint quantized or pruned once, and saved, for every later load."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.cli import inputs
from samfast.cli.console import CommandLineError, Console
from samfast.cli.options import check_device, positive_int
from samfast.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from samfast.recipes import Recipe

PHOTOS = 32
"""Photos to calibrate on unless --limit says otherwise."""

DESCRIPTION = """\
Quantize or prune a checkpoint once and save it. samfast.load and every command take the file like
any other checkpoint, and "auto" then runs what it holds."""

EPILOG = """\
int8 and fp8 recipes need no photos. 2:4 recipes do: two of every four weights are dropped and the
others are changed so that the encoder's answers on the photos stay as near as they can. Photos like
those that the model will see are best, and more than about 50 change little. On a GPU this takes
seconds to minutes, on a CPU about three times as long as encoding the photos. `samfast eval` says
what it has cost."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "quantize",
        help="quantize or prune a checkpoint once, and save it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model's name (vit_xs, vit_b, ...), .pth, .safetensors, a directory or a Hugging "
        "Face id",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="for 2:4: a file, a directory (not searched deeper) or a glob",
    )
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="one that quantizes or sparsifies"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint holds")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="to prune on; default: cuda if there is one, else cpu",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=PHOTOS,
        metavar="N",
        help=f"photos, evenly spaced among those given (default: {PHOTOS})",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Quantize or prune, and write; 0, or 1 if some photo could not be used."""
    check_device(args.device)
    import samfast
    from samfast import recipes
    from samfast.checkpoints import quantized_checkpoint
    from samfast.checkpoints.identify import config_of
    from samfast.linear.prune_layerwise import prune_layerwise

    recipe = recipes.get(args.recipe)
    if not recipe.lossy:
        raise CommandLineError(
            f"--recipe {args.recipe} neither quantizes nor sparsifies, so there is nothing to save "
            "(take one of "
            f"{', '.join(name for name, known in recipes.RECIPES.items() if known.lossy)})"
        )
    check_out(args.out, args.checkpoint)
    files, failed = photographs(args, recipe, console)
    sam = samfast.load(**source(args))
    if recipe.sparsify is not None:
        photos = read(files, sam.image_size, console)
        failed += len(files) - len(photos)
        with console.progress(len(sam.model.image_encoder.blocks), "block") as advance:
            errors = prune_layerwise(sam.model, photos, recipe.sparse_layers, progress=advance)
        worst = max(errors, key=lambda layer: errors[layer])
        console.result(
            f"pruned {len(errors)} layers; on {len(photos)} photos their answers are off by "
            f"{sum(errors.values()) / len(errors):.1%} on average, and {errors[worst]:.1%} at most "
            f"({worst})"
        )
    quantized_checkpoint.save(
        sam.model,
        recipe.layer_formats,
        args.out,
        config=config_of(sam.model.state_dict()),
        fingerprint=sam.fingerprint,
        source=args.checkpoint,
    )
    size = Path(args.out).stat().st_size
    console.result(f"{args.out}: {sam.name}, {recipe.layer_formats}, {size / 2**20:.1f} MiB")
    return 1 if failed else 0


def source(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `samfast.load`: the checkpoint in float32, with an attention that is exact
    and not slow.
    """
    import torch

    from samfast.checkpoints import KNOWN
    from samfast.recipes import Recipe

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    known = args.checkpoint in KNOWN and not Path(args.checkpoint).exists()
    if known and args.model not in (None, args.checkpoint):
        raise CommandLineError(
            f"--model {args.model}: the checkpoint is {args.checkpoint} (leave --model out)"
        )
    return {
        "name": args.checkpoint if known else args.model,
        "checkpoint": None if known else args.checkpoint,
        "device": device,
        "recipe": Recipe(attention="sdpa" if device == "cuda" else "blocked"),
    }


def photographs(
    args: argparse.Namespace, recipe: Recipe, console: Console
) -> tuple[list[Path], int]:
    """The photos to calibrate on, and how many arguments name none; CommandLineError if there must
    be some.
    """
    if recipe.sparsify is None:
        if args.images:
            console.warn(f"recipe {args.recipe} needs no photos; those given are not read")
        return [], 0
    plan = inputs.plan(args.images, Path(), ())
    for message in plan.failures:
        console.warn(message)
    if not plan.jobs:
        raise CommandLineError(
            f"--recipe {args.recipe} prunes, which needs photos like those that the model will see "
            "(give files, "
            "directories or globs after the checkpoint)"
        )
    files = [job.source for job in plan.jobs]
    count = min(args.limit, len(files))
    return [files[i * len(files) // count] for i in range(count)], len(plan.failures)


def read(files: Sequence[Path], side: int, console: Console) -> list[Tensor]:
    """Each photo's normalised pixels (1, 3, side, side); those that cannot be used are reported and
    left out.
    """
    from samfast.images import load_image, to_batch

    found = []
    for file in files:
        try:
            found.append(to_batch([load_image(file)], side).pixels)
        except ImageError as error:
            console.warn(str(error))
    if not found:
        raise CommandLineError(
            "no photo could be used, so nothing was pruned (see the messages above)"
        )
    return found


def check_out(out: str, checkpoint: str) -> None:
    """CommandLineError when --out could not be written later, or is the checkpoint itself."""
    path = Path(out)
    if path.is_dir():
        raise CommandLineError(f"--out {path}: that is a directory (name a file in it)")
    if not path.absolute().parent.is_dir():
        raise CommandLineError(f"--out {path}: there is no directory {path.parent} (make it first)")
    if os.path.realpath(path) == os.path.realpath(checkpoint):
        raise CommandLineError(f"--out {path}: that is the checkpoint itself (name another file)")
