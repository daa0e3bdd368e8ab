"""The checkpoints known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """A checkpoint that `samfast.load(name)` finds without a path.

    name        of the model, as in `samfast.model.config.CONFIGS`
    file        its file name, in the package or in the cache
    parameters  numbers in the model, without the fixed positional matrix
    licence     of the weights
    url         where it is downloaded from; None if it ships with the package
    size        in bytes, of the file at `url`
    sha256      of the file at `url`, in hex
    automatic   its own defaults of `samfast segment` and `SamFast.segment`, where they differ from
                the original's; `SamAutomaticMaskGenerator` keeps those of the original
    """

    name: str
    file: str
    parameters: int
    licence: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    automatic: Mapping[str, float] = field(default_factory=dict)


def _from_meta(name: str, file: str, parameters: int, size: int, sha256: str) -> Known:
    # The six hex digits in Meta's file names begin the files' MD5. The SHA-256 here are those that
    # many public projects pin for the same addresses.
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    return Known(name, file, parameters, "Apache-2.0", url, size, sha256)


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            "vit_xs",
            "vit_xs.safetensors",
            10_621_360,
            "CC-BY-NC-4.0 (weights)",
            # Its masks have 1.4 holes and islands of fewer pixels each, on average.
            automatic={"min_mask_region_area": 100},
        ),
        _from_meta(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            parameters=93_735_472,
            size=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _from_meta(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            parameters=312_342_832,
            size=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _from_meta(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            parameters=641_090_608,
            size=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}
