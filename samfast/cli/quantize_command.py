"""`samfast quantize`: quantize or prune a checkpoint once, and save it for later loads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import samfast
from samfast.cli import image_files
from samfast.cli.common_options import (
    add_checkpoint_argument,
    add_command,
    add_device_option,
    add_images_argument,
    name_and_checkpoint,
    plain_attention,
    positive_int,
)
from samfast.cli.console import CommandLineError, Console, check_output_file
from samfast.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from samfast.engine import SamFast
    from samfast.recipes import Recipe

PHOTOS = 32
"""Default number of photos to prune with."""

DESCRIPTION = """\
Quantize or prune a checkpoint once and save it. samfast.load and all commands take the saved file
like any other checkpoint, and the recipe "auto" then runs it as it was quantized or pruned."""

EPILOG = """\
int8 and fp8 recipes need no photos. 2:4 recipes do: they drop two of every four weights and adjust
the others so that the encoder's output on the photos changes as little as possible. Use photos like
those that the model will see; more than about 50 make little difference. On a GPU this takes
seconds to minutes, on a CPU about three times as long as encoding the photos. `samfast eval`
measures the loss of accuracy.

The file saves memory and the time that quantizing or pruning takes at every load. Quantized layers
take a quarter of their float32, pruned ones keep their zeros; everything else is stored exactly, in
16 bits where the checkpoint's values fit into them."""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "quantize",
        run,
        help="quantize or prune a checkpoint and save it",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_checkpoint_argument(parser)
    add_images_argument(parser, "*", "for 2:4 recipes: ")
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe that quantizes or sparsifies"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the .safetensors file to write"
    )
    add_device_option(parser)
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=PHOTOS,
        metavar="N",
        help=f"use N photos, evenly spaced among those given (default: {PHOTOS})",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Quantize or prune, and write; 0, or 1 if some photo could not be used."""
    from samfast import recipes
    from samfast.checkpoints import quantized_checkpoint
    from samfast.checkpoints.identify import config_of
    from samfast.device.machine import resolve_device

    device = resolve_device(args.device)
    recipe = recipes.get(args.recipe)
    if not recipe.lossy:
        lossy = ", ".join(name for name, each in recipes.RECIPES.items() if each.lossy)
        raise CommandLineError(
            f"--recipe {args.recipe} neither quantizes nor sparsifies, so there is nothing to save "
            f"(take one of {lossy})"
        )
    check_output_file("--out", args.out)
    if os.path.realpath(args.out) == os.path.realpath(args.checkpoint):
        raise CommandLineError(
            f"--out {args.out}: that is the checkpoint itself (name another file)"
        )
    photos: list[Path] = []
    failed = 0
    if recipe.sparsify is not None:
        photos, failed = _photos(args, console)
    elif args.images:
        console.warn(f"recipe {args.recipe} needs no photos; those given are not read")
    name, checkpoint = name_and_checkpoint(args.checkpoint, args.model)
    plain = recipes.Recipe(attention=plain_attention(device))
    sam = samfast.load(name, checkpoint=checkpoint, device=device, recipe=plain)
    if recipe.sparsify is not None:
        failed += _prune(sam, recipe, photos, console)
    quantized_checkpoint.save(
        sam.model,
        recipe.layer_formats,
        args.out,
        config=config_of(sam.model.state_dict()),
        fingerprint=sam.fingerprint,
        source=args.checkpoint,
    )
    size = Path(args.out).stat().st_size
    console.result(
        f"{args.out}: {sam.name}, {recipe.layer_formats}, {size / 2**20:.1f} MiB; the checkpoint "
        f"takes {_size(name, checkpoint) / 2**20:.1f} MiB"
    )
    return 1 if failed else 0


def _size(name: str | None, checkpoint: str | None) -> int:
    """The bytes of the checkpoint, of all its shards."""
    from samfast.checkpoints import file_formats, resolve

    path = file_formats.find(resolve(name, checkpoint))
    if path.name in file_formats.INDEX_FILES:
        return sum((path.parent / shard).stat().st_size for shard in file_formats.shards(path))
    return path.stat().st_size


def _prune(sam: SamFast, recipe: Recipe, files: Sequence[Path], console: Console) -> int:
    """Prune the model with photos, and print the error; returns how many could not be used."""
    from samfast.linear import prune_layerwise

    photos = read_pixels(files, sam.image_size, console)
    with console.progress(len(sam.model.image_encoder.blocks), "block") as advance:
        errors = prune_layerwise.prune_layerwise(
            sam.model, photos, recipe.sparse_layers, progress=advance
        )
    worst = max(errors, key=lambda layer: errors[layer])
    console.result(
        f"pruned {len(errors)} layers; on {len(photos)} photos their outputs are off by "
        f"{sum(errors.values()) / len(errors):.1%} on average, and {errors[worst]:.1%} at most "
        f"({worst})"
    )
    return len(files) - len(photos)


def _photos(args: argparse.Namespace, console: Console) -> tuple[list[Path], int]:
    """The photos to prune with, and the number of arguments that name none."""
    files, failed = image_files.photos(
        args.images,
        console,
        f"--recipe {args.recipe} prunes, which needs photos like those that the model will see",
    )
    count = min(args.limit, len(files))
    return [files[i * len(files) // count] for i in range(count)], failed


def read_pixels(files: Sequence[Path], side: int, console: Console) -> list[Tensor]:
    """Each photo's normalised pixels (1, 3, side, side), without those that cannot be read.

    CommandLineError if none can be read.
    """
    from samfast.images import load_image, to_batch

    pixels = []
    for file in files:
        try:
            pixels.append(to_batch([load_image(file)], side).pixels)
        except ImageError as error:
            console.warn(str(error))
    if not pixels:
        raise CommandLineError(
            "no photo could be used, so nothing was pruned (see the messages above)"
        )
    return pixels
