"""load_image: any image becomes upright RGB; anything else is refused by name, with a remedy."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageFile

from samfast.errors import ImageError
from samfast.images import LoadedImage, load_image
from samfast.images import decode as decode_module
from samfast.images import files as files_module


def photo(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    """Smooth RGB pixels with every value range, so that lossy formats stay close."""
    y, x = np.mgrid[0:height, 0:width]
    phase = seed + np.arange(3)
    waves = np.sin(x[..., None] / 7 + phase) * np.cos(y[..., None] / 5 - phase)
    return np.round((waves + 1) * 127.5).astype(np.uint8)


def refusal(source: object, name: str | None = None) -> str:
    """The message, checked to be one line."""
    with pytest.raises(ImageError) as caught:
        load_image(source, name)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------- usable images


def test_path_pil_array_and_tensor_agree(tmp_path: Path) -> None:
    pixels = photo()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sources = {
        "str": str(tmp_path / "a.png"),
        "path": tmp_path / "a.png",
        "pil": Image.fromarray(pixels),
        "array": pixels,
        "fortran": np.asfortranarray(pixels),
        "reversed twice": pixels[:, :, ::-1].copy()[:, :, ::-1],
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "contiguous tensor": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
    }
    for kind, source in sources.items():
        loaded = load_image(source)  # type: ignore[arg-type]
        assert loaded.pixels.dtype == np.uint8, kind
        assert np.array_equal(loaded.pixels, pixels), kind
        assert loaded.notes == (), kind
        assert loaded.size == (24, 40), kind


def test_name_is_the_path_or_what_the_caller_says(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo()).save(path)
    assert load_image(path).name == str(path)
    assert load_image(path, "first").name == "first"
    assert load_image(Image.open(path)).name == str(path)
    assert load_image(Image.fromarray(photo())).name == "PIL image"
    assert load_image(photo()).name == "array of shape (24, 40, 3)"
    assert load_image(photo(), "crop 3").name == "crop 3"


def test_an_rgb_array_is_not_copied_and_pixels_of_a_file_are_writable(tmp_path: Path) -> None:
    pixels = photo()
    assert load_image(pixels).pixels is pixels
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").pixels.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "tga", "webp", "gif", "jpg"])
def test_formats_decode_as_pillow_does(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo()).save(path)
    with Image.open(path) as picture:
        expected = np.array(picture.convert("RGB"))
    loaded = load_image(path)
    assert np.array_equal(loaded.pixels, expected)
    assert loaded.notes == ()


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(load_image(tmp_path / "a.jpg").pixels, photo())


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_tiny_images_work(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = photo(*shape)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png").pixels, pixels)
    assert np.array_equal(load_image(pixels).pixels, pixels)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = photo()[:, :, 0]
    expected = np.stack([grey] * 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", grey, grey[:, :, None], torch.from_numpy(grey)[None]):
        loaded = load_image(source)
        assert np.array_equal(loaded.pixels, expected)
        assert loaded.notes == ()


def test_black_and_white(tmp_path: Path) -> None:
    bits = photo()[:, :, 0] > 99
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png").pixels[:, :, 1], bits * 255)


def test_alpha_is_dropped_and_said(tmp_path: Path) -> None:
    pixels = photo()
    alpha = np.arange(40, dtype=np.uint8)[None].repeat(24, 0)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "rgba.png")
    loaded = load_image(tmp_path / "rgba.png")
    assert np.array_equal(loaded.pixels, pixels)  # not composited: as convert("RGB") and OpenCV do
    assert loaded.notes == ("alpha was dropped; what was transparent shows its own colour",)

    Image.fromarray(np.dstack([pixels[:, :, 0], alpha])).save(tmp_path / "la.png")
    loaded = load_image(tmp_path / "la.png")
    assert np.array_equal(loaded.pixels, np.stack([pixels[:, :, 0]] * 3, 2))
    assert "alpha" in loaded.notes[0]


def test_opaque_alpha_is_dropped_without_a_note(tmp_path: Path) -> None:
    opaque = np.dstack([photo(), np.full((24, 40), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded.pixels, photo())
    assert loaded.notes == ()


@pytest.mark.parametrize(
    "transparency", [None, 3, bytes(range(0, 256, 2))], ids=["none", "index", "bytes"]
)
def test_palette(tmp_path: Path, transparency: int | bytes | None) -> None:
    picture = Image.fromarray(photo()).quantize(128)
    expected = np.array(picture.convert("RGB"))
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "a.png", **options)
    loaded = load_image(tmp_path / "a.png")  # Pillow warns about bytes; warnings are errors here
    assert np.array_equal(loaded.pixels, expected)
    assert len(loaded.notes) == (transparency is not None)


def test_grey_with_a_transparent_value(tmp_path: Path) -> None:
    grey = photo()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=int(grey[0, 0]))
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded.pixels[:, :, 0], grey)
    assert "alpha" in loaded.notes[0]


def test_cmyk_is_converted_and_said(tmp_path: Path) -> None:
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.mode == "CMYK"
        assert np.array_equal(loaded.pixels, np.array(picture.convert("RGB")))
    assert np.abs(loaded.pixels.astype(int) - photo()).mean() < 8
    assert loaded.notes == ("CMYK became RGB without a colour profile",)


MODES = "1 L P PA LA La RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I;16 I;16B"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_pillow_mode_with_a_known_white_is_usable(mode: str) -> None:
    loaded = load_image(Image.new(mode, (3, 2)))
    assert loaded.pixels.shape == (2, 3, 3)
    assert loaded.pixels.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_said(tmp_path: Path, suffix: str) -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 65
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert np.array_equal(loaded.pixels, np.stack([values // 256] * 3, 2))
    assert loaded.notes == (
        "16-bit grey became 8-bit: values 0..62335 are divided by 256, to 0..243",
    )


def test_32_bit_integers_of_16_bit_pixels_are_scaled() -> None:
    values = np.array([[0, 256], [40000, 65535]], np.int32)
    loaded = load_image(Image.fromarray(values))
    assert loaded.pixels[:, :, 0].tolist() == [[0, 1], [156, 255]]


@pytest.mark.parametrize("top", [1, 200, 255])
def test_8_bit_values_in_16_bit_would_be_black_and_are_refused(tmp_path: Path, top: int) -> None:
    Image.fromarray(np.array([[0, top]], np.uint16)).save(tmp_path / "a.png")
    message = refusal(tmp_path / "a.png")
    assert f"values 0..{top}" in message
    assert "8 bits" in message


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow writes neither 16-bit colour nor lies about its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colour_keeps_the_high_byte_and_says_so(tmp_path: Path) -> None:
    values = (photo().astype(np.uint16) << 8) + 77
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(40, 24, 16, 2, rows))
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded.pixels, photo())
    assert loaded.notes == ("16-bit colour became 8-bit: the high byte of each value is used",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = photo()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        loaded = load_image(source)
        assert np.array_equal(loaded.pixels, upright)
        if orientation == 1:
            assert loaded.notes == ()
        else:
            note = f"turned upright by its EXIF orientation {orientation}: now 24 x 40 (H x W)"
            assert loaded.notes == (note,)


def test_an_unknown_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png").pixels, photo())


def test_a_photo_with_damaged_exif_loads_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(photo())

    def broken() -> None:
        raise SyntaxError("not a TIFF file (header b'xx' not valid)")

    monkeypatch.setattr(picture, "getexif", broken)
    loaded = load_image(picture)
    assert np.array_equal(loaded.pixels, photo())
    assert "EXIF data is damaged" in loaded.notes[0]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_said(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (0, 120, 240)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.pixels.max() == 0
    assert loaded.notes == ("it has 3 frames; only the first is used",)


def test_of_an_opened_animation_the_current_frame_is_used(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (0, 120, 240)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as picture:
        picture.seek(1)
        loaded = load_image(picture)
        assert picture.tell() == 1
    assert loaded.pixels.min() == loaded.pixels.max() == 120
    assert loaded.notes == ("it has 3 frames; only number 2 is used",)


def test_the_callers_pil_image_stays_as_it_was(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([photo(), photo()[:, :, :1]])
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        load_image(picture)
        assert (picture.mode, picture.size) == ("RGBA", (40, 24))
        assert picture.getexif()[0x0112] == 6
        assert np.array_equal(np.array(picture), rgba)


def test_notes_add_up(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(photo()).convert("CMYK").save(tmp_path / "a.jpg", exif=exif)
    assert [note.split()[0] for note in load_image(tmp_path / "a.jpg").notes] == ["turned", "CMYK"]


def test_threads(tmp_path: Path) -> None:
    photos = [photo(seed=seed) for seed in range(12)]
    for seed, pixels in enumerate(photos):
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(load_image, [tmp_path / f"{seed}.png" for seed in range(12)]))
    for image, pixels in zip(loaded, photos, strict=True):
        assert np.array_equal(image.pixels, pixels)


# -------------------------------------------------------------------------------- bad files


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    assert refusal(path).startswith(f"{path}: no such file; check the path")
    assert "download it first" in refusal("https://example.com/cat.jpg")


def test_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: is a folder; name the image files in it"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    said = refusal(tmp_path / "a.png")
    assert said.endswith("a.png: is empty (0 bytes); copy or download it again")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo()).save(path)
    real_open = builtins.open

    def denied(file: object, *args: object, **kwargs: object) -> object:  # root may read everything
        if file == str(path):
            raise PermissionError(13, "Permission denied", file)
        return real_open(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", denied)
    assert refusal(path) == f"{path}: may not be read; give this user permission to read it"


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000 + ".png"], ids=["nul", "long"])
def test_impossible_paths(path: str) -> None:
    assert "cannot be opened" in refusal(path)


def test_a_name_with_a_line_break_still_gives_one_line(tmp_path: Path) -> None:
    message = refusal(tmp_path / "two\nlines.png")  # refusal() checks that it is one line
    assert "two\\nlines.png" in message


@pytest.mark.parametrize(
    "content",
    [
        b"hello, I am text\n" * 40,
        b"\0" * 500,
        bytes(range(256)) * 8,
        b"<svg xmlns='x'></svg>",
        b"%PDF-1.7\n",
    ],
    ids=["text", "zeros", "bytes", "svg", "pdf"],
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    message = refusal(tmp_path / "a.jpg")
    assert message.startswith(f"{tmp_path / 'a.jpg'}: ")
    assert "image" in message
    assert "PNG or JPEG" in message


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    path = tmp_path / f"a.{suffix}"
    for share in (0.002, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95):
        path.write_bytes(data[: max(1, int(share * len(data)))])
        message = refusal(path)
        assert message.startswith(f"{path}: ")
        assert "; " in message


def test_every_prefix_of_a_png_is_an_image_error_or_the_image(tmp_path: Path) -> None:
    Image.fromarray(photo(6, 7)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    path = tmp_path / "a.png"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        message = ""
        try:
            loaded = load_image(path)  # only the end mark is missing
            assert np.array_equal(loaded.pixels, photo(6, 7))
        except ImageError as error:
            message = str(error)
        assert message.startswith(f"{path}: " if message else "")


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a"
    for suffix in ("png", "jpg", "gif", "tif"):
        Image.fromarray(photo(9, 8)).save(tmp_path / f"whole.{suffix}")
        data = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            where = rng.integers(0, len(data), 6)
            damaged[where] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own about tags it skips
                with contextlib.suppress(ImageError):
                    assert load_image(path).pixels.dtype == np.uint8


def test_damaged_file_of_a_known_format_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 9)
    assert "damaged PNG file" in refusal(tmp_path / "a.png")
    (tmp_path / "a.gif").write_bytes(b"GIF89a\x01")
    assert "damaged GIF file" in refusal(tmp_path / "a.gif")


@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_decompression_bombs_are_refused_without_a_warning(tmp_path: Path, side: int) -> None:
    """Pillow warns about the first and refuses the others; no pixel of any is decoded."""
    (tmp_path / "a.png").write_bytes(png(side, side, 8, 0, b"\0" * 1000))
    filters = list(warnings.filters)
    limit = Image.MAX_IMAGE_PIXELS
    message = refusal(tmp_path / "a.png")
    assert "decompression bomb" in message
    assert f"{side} x {side}" in message
    assert "PIL.Image.MAX_IMAGE_PIXELS" in message
    assert (warnings.filters, limit) == (filters, Image.MAX_IMAGE_PIXELS)


def test_the_callers_pixel_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    assert "decompression bomb" in refusal(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40)
    assert load_image(tmp_path / "a.png").size == (24, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / "a.png").size == (24, 40)


def test_an_image_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(photo())

    def full() -> None:
        raise MemoryError

    monkeypatch.setattr(picture, "load", full)
    assert "40 x 24 pixels do not fit into memory" in refusal(picture)


@pytest.mark.parametrize("where", ["open", "decode"])
def test_ctrl_c_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    if where == "open":
        monkeypatch.setattr(files_module, "_identify", interrupt)
    else:
        monkeypatch.setattr(decode_module, "_rgb", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_image(tmp_path / "a.png")


def test_files_are_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:-60])
    seen: list[IO[bytes]] = []
    real = files_module._open_file

    def watched(path: str, name: str) -> IO[bytes]:
        seen.append(real(path, name))
        return seen[-1]

    monkeypatch.setattr(files_module, "_open_file", watched)
    load_image(tmp_path / "good.png")
    refusal(tmp_path / "bad.png")
    assert [file.closed for file in seen] == [True, True]


def test_a_plugin_that_the_caller_registered_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))

    class Dots(ImageFile.ImageFile):
        format = "DOTS"

        def _open(self) -> None:
            self._mode = "L"
            self._size = (2, 1)
            self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 4, "L")]

    Image.register_open("DOTS", Dots, lambda prefix: prefix.startswith(b"DOTS"))
    (tmp_path / "a.dots").write_bytes(b"DOTS\x07\x09")
    assert load_image(tmp_path / "a.dots").pixels[0, :, 0].tolist() == [7, 9]


# ------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize("source", [None, 7, 3.5, [[1, 2], [3, 4]], {"image": 1}, object()])
def test_other_objects(source: object) -> None:
    message = refusal(source, "image 3")
    assert message.startswith("image 3: cannot use ")
    assert "pass a path" in message


def test_bytes_and_open_files_say_how_to_open_them() -> None:
    assert "PIL.Image.open(io.BytesIO(data))" in refusal(b"\x89PNG")
    assert "PIL.Image.open(file)" in refusal(io.BytesIO(b"\x89PNG"))

    class BytesPath(os.PathLike):
        def __fspath__(self) -> bytes:
            return b"a.png"

    assert "os.fsdecode" in refusal(BytesPath())


def test_float_pil_image() -> None:
    assert "32-bit floats" in refusal(Image.fromarray(np.zeros((3, 4), np.float32)))


@pytest.mark.parametrize("values", [[[-1, 5]], [[0, 70000]], [[0, 200]], [[0, 0]]])
def test_32_bit_pil_image_of_other_values(values: list[list[int]]) -> None:
    assert "mode I with values" in refusal(Image.fromarray(np.array(values, np.int32)))


def test_pil_image_without_pixels_or_closed(tmp_path: Path) -> None:
    assert "has no pixels (0 x 4)" in refusal(Image.new("RGB", (0, 4)))
    Image.fromarray(photo()).save(tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    picture.close()
    assert "a.png" in refusal(picture)


ARRAYS = [
    (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
    (np.zeros((4, 0), np.uint8), "has no pixels"),
    (np.zeros((3, 20, 30), np.uint8), "pass x.transpose(1, 2, 0)"),
    (np.zeros((1, 20, 30), np.uint8), "pass x.transpose(1, 2, 0)"),
    (np.zeros((20, 30, 4), np.uint8), "pass x[..., :3]"),
    (np.zeros((4, 20, 30), np.uint8), "pass x[:3].transpose(1, 2, 0)"),
    (np.zeros((20, 30, 2), np.uint8), "not an image"),
    (np.zeros((20, 30, 9), np.uint8), "not an image"),
    (np.zeros((2, 20, 30, 3), np.uint8), "one by one"),
    (np.zeros(20, np.uint8), "not an image"),
    (np.array(5, np.uint8), "not an image"),
    (np.full((4, 5, 3), 0.5, np.float32), "these lie in 0.5..0.5: pass (x * 255).astype(np.uint8)"),
    (np.linspace(0, 255, 60).reshape(4, 5, 3), "dtype float64, and an image is uint8 with values"),
    (np.linspace(0, 255, 60).reshape(4, 5, 3), "these lie in 0..255: pass x.astype(np.uint8)"),
    (np.linspace(-2.1, 2.6, 60).reshape(4, 5, 3), "these lie in -2.1..2.6: scale x to 0..255"),
    (np.where(np.arange(60) == 7, np.nan, 0.5).reshape(4, 5, 3), "1 of 60 values are NaN"),
    (np.where(np.arange(60) < 2, np.inf, 0.5).reshape(4, 5, 3), "2 of 60 values are NaN"),
    (np.full((4, 5, 3), 60000, np.uint16), "(x // 256).astype(np.uint8)"),
    (np.full((4, 5, 3), 200, np.int64), "pass x.astype(np.uint8)"),
    (np.full((4, 5, 3), -3, np.int32), "these lie in -3..-3: scale"),
    (np.ones((4, 5), bool), "pass x.astype(np.uint8) * 255"),
    (np.full((4, 5, 3), 1j), "dtype complex128"),
    (np.full((4, 5, 3), "a"), "dtype <U1"),
    (np.full((4, 5, 3), None), "dtype object"),
    (np.zeros((0, 5, 3), np.float32), "dtype float32"),
]  # fmt: skip


@pytest.mark.parametrize(("array", "said"), ARRAYS, ids=range(len(ARRAYS)))
def test_unusable_arrays(array: np.ndarray, said: str) -> None:
    message = refusal(array)
    assert message.startswith(f"array of shape {array.shape}: ")
    assert said in message
    assert refusal(array, "image 7").startswith("image 7: ")


TENSORS = [
    (torch.zeros(20, 30, 3, dtype=torch.uint8), "pass x.permute(2, 0, 1)"),
    (torch.zeros(20, 30, 1, dtype=torch.uint8), "pass x.permute(2, 0, 1)"),
    (torch.zeros(20, 30, 4, dtype=torch.uint8), "pass x[..., :3].permute(2, 0, 1)"),
    (torch.zeros(4, 20, 30, dtype=torch.uint8), "pass x[:3]"),
    (torch.zeros(1, 3, 20, 30, dtype=torch.uint8), "one by one"),
    (torch.zeros(20, 30, dtype=torch.uint8), "not an image"),
    (torch.zeros(3, 0, 30, dtype=torch.uint8), "has no pixels"),
    (torch.full((3, 4, 5), 0.25), "these lie in 0.25..0.25: pass (x * 255).to(torch.uint8)"),
    (torch.full((3, 4, 5), 0.25, dtype=torch.bfloat16), "pass (x * 255).to(torch.uint8)"),
    (torch.full((3, 4, 5), -1.0), "scale x to 0..255 first, then x.to(torch.uint8)"),
    (torch.full((3, 4, 5), float("nan")), "60 of 60 values are NaN"),
    (torch.full((3, 4, 5), 9, dtype=torch.int32), "pass x.to(torch.uint8)"),
    (torch.ones(3, 4, 5, dtype=torch.bool), "pass x.to(torch.uint8) * 255"),
    (torch.zeros(3, 4, 5, dtype=torch.uint8, device="meta"), "no plain values"),
]


@pytest.mark.parametrize(("tensor", "said"), TENSORS, ids=range(len(TENSORS)))
def test_unusable_tensors(tensor: torch.Tensor, said: str) -> None:
    message = refusal(tensor)
    assert message.startswith(f"tensor of shape {tuple(tensor.shape)}: ")
    assert said in message


def test_remedies_work() -> None:
    """What a message proposes is itself accepted."""
    pixels = photo()
    scaled = load_image((pixels / 255 * 255).astype(np.uint8)).pixels
    assert np.abs(scaled.astype(int) - pixels).max() <= 1
    x = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    assert np.array_equal(load_image(x.transpose(1, 2, 0)).pixels, pixels)
    t = torch.from_numpy(pixels)
    assert np.array_equal(load_image(t.permute(2, 0, 1)).pixels, pixels)


@pytest.mark.gpu
def test_tensor_on_a_gpu() -> None:
    pixels = photo()
    loaded = load_image(torch.from_numpy(pixels).permute(2, 0, 1).cuda())
    assert np.array_equal(loaded.pixels, pixels)


def test_loaded_image_is_frozen() -> None:
    loaded = LoadedImage(photo(), "a")
    with pytest.raises(AttributeError):
        loaded.name = "b"  # type: ignore[misc]


# ------------------------------------------------------------------------------ refused formats


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps"])
def test_eps_never_reaches_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    (tmp_path / name).write_bytes(EPS)
    message = refusal(tmp_path / name)
    assert "EPS, which samfast does not read" in message and "convert it" in message
    with Image.open(tmp_path / name) as picture:
        assert "EPS" in refusal(picture)
    assert started == []


@pytest.mark.parametrize(
    ("kind", "start"), [("FITS", b"SIMPLE  ="), ("XBM", b"#define a_width 8"), ("GRIB", b"GRIB")]
)
def test_other_formats_that_are_not_read_are_named(tmp_path: Path, kind: str, start: bytes) -> None:
    (tmp_path / "a.png").write_bytes(start.ljust(64, b"\1"))
    assert f"{kind}, which samfast does not read" in refusal(tmp_path / "a.png")


def test_a_decompression_bomb_names_both_ways_to_raise_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 8, 0, b""))
    message = refusal(tmp_path / "a.png")
    assert "--max-pixels" in message and "PIL.Image.MAX_IMAGE_PIXELS" in message


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_of_images(layout):
    images = [torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(3, 8, 7, dtype=torch.uint8)]
    if layout is torch.jagged:
        images = [image.permute(2, 0, 1).contiguous() for image in images]
    with pytest.raises(ImageError, match="nested tensor; pass its images one by one"):
        load_image(torch.nested.nested_tensor(images, layout=layout))
