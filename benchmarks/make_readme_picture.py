"""Make the README's picture: a photo, and beside it the masks that samfast finds in it.

    python benchmarks/make_readme_picture.py

The photo is scikit-image's `coins.png`, Greek coins from Pompeii, from the Brooklyn Museum's
collection, with no known copyright restrictions. Its masks are those of `samfast segment` with the
packaged model. Takes a minute on two CPU cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import skimage
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfast.cli.main import main as samfast  # noqa: E402

PHOTO = Path(skimage.__file__).parent / "data" / "coins.png"
PICTURE = ROOT / "docs" / "images" / "coins.jpg"
GAP = 12
"""White pixels between the photo and its masks."""


def main() -> int:
    """0 when the picture is written, else the exit code of `samfast segment`."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--recipe", "fp32_onednn", "--device", "cpu"]
        code = samfast(["segment", str(PHOTO), *options, "--overlay", "--out", folder])
        if code != 0:
            return code
        halves = [Image.open(PHOTO), Image.open(Path(folder) / "coins.overlay.png")]
        width, height = halves[0].size
        picture = Image.new("RGB", (2 * width + GAP, height), "white")
        for index, half in enumerate(halves):
            picture.paste(half.convert("RGB"), (index * (width + GAP), 0))
    picture.save(PICTURE, quality=92, optimize=True)
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
