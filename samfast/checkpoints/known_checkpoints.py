"""The checkpoints known by name."""

from __future__ import annotations

from dataclasses import dataclass

# The six digits in Meta's file names begin the files' MD5; the SHA-256 here are those that many
# public projects pin for the same addresses.
_META = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Known:
    """A checkpoint that `samfast.load(name)` finds by itself.

    name        the model's, as in `samfast.model.config.CONFIGS`
    file        its file name, in the package or in the cache
    parameters  numbers in the model, the fixed positional matrix not among them
    licence     of the weights
    url         where it is downloaded from; None: it ships with the package
    size        in bytes, of the file at `url`
    sha256      of the file at `url`, in hex
    hub         the Hugging Face id of the same weights in transformers' layout
    """

    name: str
    file: str
    parameters: int
    licence: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    hub: str | None = None


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            name="vit_xs",
            file="vit_xs.safetensors",
            parameters=10_621_360,
            licence="CC-BY-NC-4.0 (weights)",
        ),
        Known(
            name="vit_b",
            file="sam_vit_b_01ec64.pth",
            parameters=93_735_472,
            licence="Apache-2.0",
            url=_META + "sam_vit_b_01ec64.pth",
            size=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            hub="facebook/sam-vit-base",
        ),
        Known(
            name="vit_l",
            file="sam_vit_l_0b3195.pth",
            parameters=312_342_832,
            licence="Apache-2.0",
            url=_META + "sam_vit_l_0b3195.pth",
            size=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            hub="facebook/sam-vit-large",
        ),
        Known(
            name="vit_h",
            file="sam_vit_h_4b8939.pth",
            parameters=641_090_608,
            licence="Apache-2.0",
            url=_META + "sam_vit_h_4b8939.pth",
            size=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            hub="facebook/sam-vit-huge",
        ),
    )
}
