"""What `samfast profile` has a model do: embed some images and answer clicks on them, or segment
everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.profiler import record_function

from samfast.bench import samples
from samfast.bench.stages import Stages
from samfast.images import ImageLike, LoadedImage, load_image
from samfast.types import Prompts, Size

if TYPE_CHECKING:
    from samfast.engine import SamFast

RUN = "run"
"""The name of the region around a whole run."""


@dataclass(frozen=True)
class Workload:
    """One run of it is one batch.

    images     as the engine takes them: files are read anew in each run
    prompts    one an image; None: everything in each image is searched, with the engine's `options`
    """

    images: tuple[ImageLike | LoadedImage, ...]
    sizes: tuple[Size, ...]
    prompts: tuple[Prompts, ...] | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, sam: SamFast, stages: Stages) -> None:
        """Once, as users do it; nothing waits for the GPU that would not anyway."""
        with record_function(RUN):
            if self.prompts is None:
                for image in self.images:
                    stages.enter("preprocess")
                    sam.segment([image], **self.options)
            else:
                stages.enter("preprocess")
                embeddings = sam.embed(self.images)
                stages.enter("prompts")
                sam.predict(embeddings, self.prompts)
            stages.enter(None)

    def describe(self) -> dict[str, Any]:
        """What is asked, for JSON."""
        return {
            "images": len(self.images),
            "sizes": [list(size) for size in self.sizes],
            "points": None
            if self.prompts is None
            else sum(len(np.asarray(p.points)) for p in self.prompts),
            "automatic": self.prompts is None,
            "options": {
                name: value
                if value is None or isinstance(value, bool | int | float | str)
                else repr(value)
                for name, value in self.options.items()
            },
        }


def clicks(images: Sequence[ImageLike | LoadedImage] | None, batch: int, points: int) -> Workload:
    """So many objects in each image, a click each, anywhere in it.

    images  their first `batch`; None: so many synthetic ones
    Raises ImageError.
    """
    chosen, sizes = _chosen(images, batch)
    generator = np.random.default_rng(0)
    prompts = tuple(
        Prompts(
            points=generator.random((points, 1, 2)) * (width - 1, height - 1),
            labels=np.ones((points, 1), dtype=np.int64),
        )
        for height, width in sizes
    )
    return Workload(chosen, sizes, prompts)


def everything(
    images: Sequence[ImageLike | LoadedImage] | None, batch: int, options: Mapping[str, Any]
) -> Workload:
    """Everything in each image; arguments as `clicks`, and the options of `SamFast.segment`."""
    chosen, sizes = _chosen(images, batch)
    return Workload(chosen, sizes, None, dict(options))


def _chosen(
    images: Sequence[ImageLike | LoadedImage] | None, batch: int
) -> tuple[tuple[ImageLike | LoadedImage, ...], tuple[Size, ...]]:
    if images is None:
        made = tuple(samples.images(batch))
        return made, tuple(image.size for image in made)
    chosen = tuple(images[:batch])
    sizes = tuple(
        (image if isinstance(image, LoadedImage) else load_image(image)).size for image in chosen
    )  # all are read here, so that a bad one is told of before anything runs
    return chosen, sizes
