"""TIFFs that Pillow decodes wrongly or not at all: what they are, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    COMPRESSION_INFO,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
)

from samfast.errors import ImageError

REMEDY = "convert it to 8-bit grey or RGB"

_UNCOMPRESSED, _WHITE_IS_ZERO, _SEPARATE_PLANES, _SIGNED = 1, 0, 2, 2
_PHOTOMETRIC = {
    0: "grey, white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
}
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


def check_layout(picture: Image.Image, name: str) -> None:
    """ImageError for a TIFF that Pillow opens, but whose values it reads wrongly.

    These are uncompressed planes of more than 8 bits, of which it takes every byte for a value, and
    signed 8-bit values, which it takes for unsigned ones.
    """
    tags = getattr(picture, "tag_v2", None)
    if tags is None:
        return
    bits = max(_numbers(tags, BITSPERSAMPLE))
    planes = tags.get(PLANAR_CONFIGURATION) == _SEPARATE_PLANES and len(picture.getbands()) > 1
    if planes and bits > 8 and tags.get(COMPRESSION, 1) == _UNCOMPRESSED:
        raise ImageError(
            f"{name}: {described(tags)}, which Pillow would decode to noise; {REMEDY}, or save it "
            "with interleaved channels"
        )
    if bits == 8 and _SIGNED in _numbers(tags, SAMPLEFORMAT):
        raise ImageError(
            f"{name}: {described(tags)}, whose black and white are not stated; add 128 or scale "
            "the values to 0..255, and save them as unsigned"
        )


def white_is_zero(picture: Image.Image) -> bool:
    """Whether 0 is white in the file. Pillow inverts such values of up to 8 bits, not of 16."""
    tags = getattr(picture, "tag_v2", {})
    return bool(tags.get(PHOTOMETRIC_INTERPRETATION, 1) == _WHITE_IS_ZERO)


def unsupported(file: IO[bytes]) -> str | None:
    """What a TIFF is that Pillow refuses to open, or None if it is damaged.

    It counts as whole if its tags can be read and describe pixels.
    """
    try:
        file.seek(0)
        header = file.read(8)
        if header[2:4] in (b"+\0", b"\0+"):  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        if min(tags[IMAGEWIDTH], tags[IMAGELENGTH], *_numbers(tags, BITSPERSAMPLE)) < 1:
            return None
        return described(tags)
    except Exception:  # Pillow raises nearly anything on damaged tags
        return None


def described(tags: Mapping[int, Any]) -> str:
    """The layout of the pixels: "a TIFF of 3 x 16-bit unsigned samples (RGB, planar)"."""
    bits, kinds = _numbers(tags, BITSPERSAMPLE), set(_numbers(tags, SAMPLEFORMAT))
    count = tags.get(SAMPLESPERPIXEL, len(bits))
    widths = "/".join(dict.fromkeys(map(str, bits)))
    kind = _FORMATS.get(kinds.pop(), "undefined") if len(kinds) == 1 else "mixed"
    colour = tags.get(PHOTOMETRIC_INTERPRETATION, "not stated")
    details = [_PHOTOMETRIC.get(colour, f"photometric interpretation {colour}")]
    if tags.get(PLANAR_CONFIGURATION) == _SEPARATE_PLANES and count > 1:
        details.append("planar")
    compression = tags.get(COMPRESSION, _UNCOMPRESSED)
    if compression != _UNCOMPRESSED:
        word = COMPRESSION_INFO.get(compression, str(compression)).removeprefix("tiff_")
        details.append(f"compression {word}")
    return f"a TIFF of {count} x {widths}-bit {kind} samples ({', '.join(details)})"


def _numbers(tags: Mapping[int, Any], tag: int) -> tuple[int, ...]:
    """The values of a tag, one for each sample; 1 where it is missing, as the format says."""
    value = tags.get(tag, 1)
    return tuple(value) if isinstance(value, tuple) else (value,)
