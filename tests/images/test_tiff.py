"""TIFFs: what Pillow decodes wrongly is read right or refused, what it cannot read is described."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samfast.errors import ImageError
from samfast.images import load_image

SHORT, LONG = 3, 4
WHITE_IS_ZERO, GREY, RGB = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def write_tiff(
    path: Path,
    values: np.ndarray,
    photometric: int,
    *,
    order: str = "<",
    planar: bool = False,
    compression: int = 1,
) -> None:
    """An uncompressed TIFF of (H, W) or (H, W, C) values, one strip for each plane."""
    samples = 1 if values.ndim == 2 else values.shape[2]
    values = values.reshape(*values.shape[:2], samples)
    planes = list(values.transpose(2, 0, 1)) if planar else [values]
    data = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[values.dtype.kind]
    starts = [8 + sum(map(len, data[:index])) for index in range(len(data))]
    tags: dict[int, tuple[int, list[int]]] = {
        256: (SHORT, [values.shape[1]]),
        257: (SHORT, [values.shape[0]]),
        258: (SHORT, [8 * values.dtype.itemsize] * samples),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        273: (LONG, starts),
        277: (SHORT, [samples]),
        278: (SHORT, [values.shape[0]]),
        279: (LONG, [len(plane) for plane in data]),
        284: (SHORT, [2 if planar else 1]),
        339: (SHORT, [kind] * samples),
    }
    directory = 8 + sum(map(len, data))
    beside = directory + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, (size, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if size == SHORT else 'I'}", *numbers)
        if len(packed) > 4:
            packed, more = struct.pack(f"{order}I", beside + len(more)), more + packed
        entries += struct.pack(f"{order}HHI", tag, size, len(numbers)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(
        mark
        + struct.pack(f"{order}I", directory)
        + b"".join(data)
        + struct.pack(f"{order}H", len(tags))
        + entries
        + bytes(4)
        + more
    )


def ramp(dtype: Any, channels: int = 0) -> np.ndarray:
    values = np.arange(24 * 40).reshape(24, 40) * 60
    if channels:
        values = np.stack([values // (1 + channel) for channel in range(channels)], -1)
    return values.astype(dtype)


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "\n" not in str(caught.value) and "damaged" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_and_rgb_keep_their_high_bytes(tmp_path: Path, order: str) -> None:
    for channels, photometric in ((0, GREY), (3, RGB)):
        values = ramp(np.uint16, channels)
        write_tiff(tmp_path / "a.tif", values, photometric, order=order)
        pixels = load_image(tmp_path / "a.tif").pixels
        high = (values >> 8).reshape(24, 40, -1)
        assert np.array_equal(pixels, np.broadcast_to(high, (24, 40, 3)))


def test_16_bit_where_0_is_white_is_inverted_and_said(tmp_path: Path) -> None:
    values = ramp(np.uint16)
    write_tiff(tmp_path / "a.tif", values, WHITE_IS_ZERO)
    with Image.open(tmp_path / "a.tif") as picture:
        opened = load_image(picture)
    loaded = load_image(tmp_path / "a.tif")
    assert np.array_equal(loaded.pixels[:, :, 0], (65535 - values) >> 8)
    assert np.array_equal(loaded.pixels, opened.pixels)
    assert len(loaded.notes) == 1 and "inverted, because 0 is white" in loaded.notes[0]


def test_8_bit_where_0_is_white_is_inverted_once(tmp_path: Path) -> None:
    values = ramp(np.uint8)
    write_tiff(tmp_path / "a.tif", values, WHITE_IS_ZERO)
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels[:, :, 0], 255 - values)


def test_8_bit_planes_are_read(tmp_path: Path) -> None:
    values = ramp(np.uint8, 3)
    write_tiff(tmp_path / "a.tif", values, RGB, planar=True)
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels, values)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_planes_would_become_noise_and_are_refused(tmp_path: Path, channels: int) -> None:
    cmyk = 5
    photometric = RGB if channels == 3 else cmyk
    write_tiff(tmp_path / "a.tif", ramp(np.uint16, channels), photometric, planar=True)
    message = refusal(tmp_path / "a.tif")
    assert f"{channels} x 16-bit unsigned samples" in message and "planar" in message
    with Image.open(tmp_path / "a.tif") as picture, pytest.raises(ImageError, match="noise"):
        load_image(picture)


def test_signed_8_bit_values_are_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", ramp(np.int8), GREY)
    assert "1 x 8-bit signed samples (grey)" in refusal(tmp_path / "a.tif")


def test_signed_16_bit_values_have_one_note(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", (ramp(np.uint16) // 2).astype(np.int16), GREY)
    assert [note[:11] for note in load_image(tmp_path / "a.tif").notes] == ["16-bit grey"]


@pytest.mark.parametrize(
    ("dtype", "channels", "photometric", "order", "words"),
    [
        (np.float64, 0, GREY, "<", "1 x 64-bit floating-point samples (grey)"),
        (np.float32, 3, RGB, "<", "3 x 32-bit floating-point samples (RGB)"),
        (np.uint32, 3, RGB, "<", "3 x 32-bit unsigned samples (RGB)"),
        (np.uint8, 5, GREY, "<", "5 x 8-bit unsigned samples (grey)"),
        (np.uint16, 0, WHITE_IS_ZERO, ">", "1 x 16-bit unsigned samples (grey, white is zero)"),
        (np.int8, 3, RGB, "<", "3 x 8-bit signed samples (RGB)"),
    ],
)
def test_what_pillow_cannot_read_is_described_and_not_called_damaged(
    tmp_path: Path, dtype: Any, channels: int, photometric: int, order: str, words: str
) -> None:
    write_tiff(tmp_path / "a.tif", ramp(dtype, channels), photometric, order=order)
    message = refusal(tmp_path / "a.tif")
    assert f"a TIFF of {words}, which Pillow cannot read; convert it" in message


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", ramp(np.uint8), GREY, compression=34712)
    assert "(grey, compression 34712), which Pillow cannot read" in refusal(tmp_path / "a.tif")


def test_a_tiff_without_tags_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(ImageError, match="damaged TIFF file"):
        load_image(tmp_path / "a.tif")
