import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

from samfast.errors import ImageError
from samfast.scenes.band_scaling import choose_scaling
from samfast.scenes.open_scene import open_scene
from samfast.scenes.source import SceneReadError
from samfast.scenes.tile_reader import FILL, read_window
from tests.scenes.colour_engine import coloured_scene
from tests.scenes.scene_files import UTM, write_tiff

RGB, _ = coloured_scene((500, 700), 30)


def whole(source, side=700):
    """What a window over all of a scene shows."""
    return read_window(source, choose_scaling(source), (0.0, 0.0), side, (1.0, 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: write_tiff(p / "tiled.tif", RGB),
        lambda p: write_tiff(p / "big.tif", RGB, BIGTIFF="YES"),
        lambda p: write_tiff(p / "strips.tif", RGB, tiled=False, blockxsize=None, blockysize=None),
        lambda p: write_tiff(p / "plain.tif", RGB, crs=None, transform=None),
        lambda p: Image.fromarray(RGB).save(p / "scene.png") or p / "scene.png",
        lambda p: (
            tifffile.imwrite(
                p / "x.ome.tif", RGB, photometric="rgb", tile=(128, 128), metadata={"axes": "YXS"}
            )
            or p / "x.ome.tif"
        ),
        lambda p: RGB,
    ],
    ids=["geotiff", "bigtiff", "strips", "plain", "png", "ome-tiff", "array"],
)
def test_every_kind_of_file_shows_the_same_pixels(make, tmp_path):
    source = open_scene(make(tmp_path))
    try:
        tile = whole(source)
        assert source.info.size == (500, 700)
        assert (tile.rgb[:500] == RGB).all()
        assert tile.valid[:500].all() and not tile.valid[500:].any()
        assert (tile.rgb[500:] == FILL).all()
        assert choose_scaling(source).notes == ()
    finally:
        source.close()


def test_a_jpeg_is_read_in_windows(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "scene.jpg", quality=95)
    source = open_scene(tmp_path / "scene.jpg")
    tile = whole(source)
    with Image.open(tmp_path / "scene.jpg") as picture:
        decoded = np.asarray(picture).astype(int)
    assert abs(tile.rgb[:500].astype(int) - decoded).mean() < 1
    source.close()


def test_ome_zarr_with_levels_and_other_axes(tmp_path):
    values = (RGB.astype(np.uint16) * 16).transpose(2, 0, 1)[None, :, None]
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    datasets = []
    for level in range(2):
        part = np.ascontiguousarray(values[..., :: 2**level, :: 2**level])
        array = group.create_array(
            str(level), shape=part.shape, chunks=(1, 1, 1, 128, 128), dtype="uint16"
        )
        array[:] = part
        datasets.append({"path": str(level)})
    axes = [{"name": name} for name in "tczyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    source = open_scene(tmp_path / "x.zarr")
    assert source.info.size == (500, 700) and source.info.levels == (1.0, 2.0)
    scaling = choose_scaling(source, value_range=(0, 255 * 16))
    assert scaling.notes == ("bands 1, 2, 3 of 3 are shown as red, green, blue",)
    tile = read_window(source, scaling, (100.0, 50.0), 256, (1.0, 1.0))
    assert (tile.rgb == RGB[50:306, 100:356]).all()
    half = read_window(source, scaling, (0.0, 0.0), 250, (2.0, 2.0))
    assert (half.rgb == RGB[::2, ::2][:250, :250]).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_values_that_are_not_8_bit_are_stretched_and_the_notes_say_how(dtype, tmp_path):
    draw = np.random.default_rng(0)
    values = draw.integers(1000, 3000, (400, 400, 3)).astype(dtype)
    source = open_scene(write_tiff(tmp_path / "scene.tif", values))
    scaling = choose_scaling(source)
    note = scaling.notes[-1]
    assert f"values ({dtype}) are stretched from the percentiles 2 and 98: 10" in note
    assert scaling.ranges is not None
    low, high = scaling.ranges[0]
    expected = np.percentile(values[:, :, 0], [2, 98])
    assert abs(low - expected[0]) < 20 and abs(high - expected[1]) < 20
    again = choose_scaling(source, value_range=scaling.ranges)
    tiles = [
        read_window(source, each, (0.0, 0.0), 400, (1.0, 1.0)).rgb for each in (scaling, again)
    ]
    assert (tiles[0] == tiles[1]).all()
    assert tiles[0].min() == 0 and tiles[0].max() == 255
    source.close()


def test_percentiles_of_a_large_scene_need_few_of_its_pixels(tmp_path):
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 6000, "width": 6000, "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", **profile, transform=UTM, tiled=True, sparse_ok=True) as file:
        file.write(np.full((1, 512, 6000), 700, np.uint16), window=((0, 512), (0, 6000)))
    source = open_scene(path)
    read = []

    class Counting:
        info = source.info
        close = source.close

        def read(self, bands, window, shape=None):
            read.append((window[2] - window[0]) * (window[3] - window[1]))
            return source.read(bands, window, shape)

    choose_scaling(Counting())
    assert sum(read) < 6000 * 6000 / 30
    source.close()


def test_bands_are_chosen_by_their_names_or_as_asked(tmp_path):
    four = np.concatenate([RGB[:, :, ::-1], np.full((500, 700, 1), 9, np.uint8)], 2)
    path = write_tiff(tmp_path / "bgrn.tif", four, photometric="minisblack")
    with rasterio.open(path, "r+") as file:
        from rasterio.enums import ColorInterp

        names = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined)
        file.colorinterp = names
    source = open_scene(path)
    scaling = choose_scaling(source)
    assert scaling.notes == ("red, green, blue are bands 3, 2, 1",)
    assert (read_window(source, scaling, (0.0, 0.0), 500, (1.0, 1.0)).rgb == RGB[:, :500]).all()
    grey = choose_scaling(source, bands=(4,))
    assert (read_window(source, grey, (0.0, 0.0), 500, (1.0, 1.0)).rgb == 9).all()
    source.close()


def test_nodata_alpha_and_palette(tmp_path):
    values = RGB.copy()
    values[100:200] = 7
    source = open_scene(write_tiff(tmp_path / "nodata.tif", values, nodata=7))
    assert not whole(source).valid[100:200].any()
    source.close()
    source = open_scene(write_tiff(tmp_path / "stated.tif", values), nodata=7)
    assert not whole(source).valid[100:200].any()
    source.close()
    alpha = np.full((500, 700, 1), 255, np.uint8)
    alpha[:50] = 0
    source = open_scene(
        write_tiff(tmp_path / "a.tif", np.concatenate([RGB, alpha], 2), alpha="yes")
    )
    tile = whole(source)
    assert not tile.valid[:50].any() and tile.valid[50:500].all()
    source.close()
    index = (np.arange(500 * 700).reshape(500, 700, 1) % 3).astype(np.uint8)
    path = write_tiff(tmp_path / "palette.tif", index, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0), 1: (0, 255, 0), 2: (1, 2, 3)})
    source = open_scene(path)
    assert choose_scaling(source).notes == ("its palette was applied",)
    assert whole(source).rgb[0, :3].tolist() == [[255, 0, 0], [0, 255, 0], [1, 2, 3]]
    source.close()


def test_bands_of_several_dtypes_are_stretched_each_by_itself(tmp_path):
    one = write_tiff(tmp_path / "a.tif", RGB[:, :, :1])
    two = write_tiff(tmp_path / "b.tif", RGB[:, :, :1].astype(np.uint16) * 100)
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i}"><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{path.name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for i, (kind, path) in enumerate([("Byte", one), ("UInt16", two), ("UInt16", two)], 1)
    )
    (tmp_path / "mixed.vrt").write_text(
        f'<VRTDataset rasterXSize="700" rasterYSize="500">{bands}</VRTDataset>'
    )
    source = open_scene(tmp_path / "mixed.vrt")
    notes = choose_scaling(source).notes
    assert "bands of several dtypes, each by itself" in notes[-1]
    rgb = whole(source).rgb
    assert (rgb[:500, :, 1] == rgb[:500, :, 2]).all()
    source.close()


@pytest.mark.parametrize(
    ("profile", "note"),
    [
        ({"crs": None}, "it has a transform but no CRS"),
        (
            {"transform": UTM * rasterio.Affine.rotation(30)},
            "its transform is rotated; results follow it",
        ),
    ],
)
def test_unusual_georeferences_are_used_and_stated(profile, note, tmp_path):
    source = open_scene(write_tiff(tmp_path / "scene.tif", RGB, **profile))
    assert any(note in each for each in source.info.notes)
    assert source.info.georeference.transform != (1, 0, 0, 0, 1, 0)
    source.close()


def test_a_truncated_file_names_the_window_that_cannot_be_read(tmp_path):
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 255, (500, 700, 3), dtype=np.uint8)
    path = write_tiff(tmp_path / "scene.tif", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = open_scene(path)
    scaling = choose_scaling(source)
    assert read_window(source, scaling, (0.0, 0.0), 128, (1.0, 1.0)).valid.all()
    with pytest.raises(SceneReadError, match="columns 0 to 128, rows 372 to 500") as error:
        read_window(source, scaling, (0.0, 372.0), 128, (1.0, 1.0))
    assert "\n" not in str(error.value)
    source.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent.tif", "absent.tif: cannot be opened"),
        (lambda p: (p / "text.tif").write_text("text") and p / "text.tif", "cannot be opened"),
        (lambda p: (p / "x.ome.tif").write_text("text") and p / "x.ome.tif", "cannot be opened"),
        (
            lambda p: (zarr.open_group(p / "x.zarr", mode="w"), p / "x.zarr")[1],
            "without multiscales",
        ),
        (
            lambda p: write_tiff(p / "c.tif", RGB[:, :, :1].astype(np.complex64)),
            "band 1 holds complex numbers",
        ),
        (lambda p: np.zeros(5, np.uint8), "a scene is"),
        (lambda p: np.array([["a"]]), "whole or floating-point numbers"),
    ],
    ids=["absent", "text", "ome", "zarr", "complex", "flat", "letters"],
)
def test_what_cannot_be_opened_is_one_line(make, message, tmp_path):
    with pytest.raises(ImageError, match=message) as error:
        open_scene(make(tmp_path))
    assert "\n" not in str(error.value)
