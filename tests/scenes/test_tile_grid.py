import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfast.errors import InputError
from samfast.scenes.georeference import Georeference
from samfast.scenes.tile_grid import TileGrid

GRIDS = st.builds(
    lambda size, tile, share, scale, anchor: TileGrid(
        size, tile, int(tile * share), (scale, scale), anchor
    ),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(64, 300),
    st.floats(0, 0.5),
    st.sampled_from([1.0, 0.5, 1.7, 3.0]),
    st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)),
)


@given(GRIDS)
def test_cells_part_the_scene_and_lie_in_their_tiles(grid):
    seen = np.zeros(
        (grid.rows * grid.stride + 2 * grid.side, grid.columns * grid.stride + 2 * grid.side)
    )
    for number in range(len(grid)):
        x0, y0, x1, y1 = grid.cell(number)
        left, top, right, bottom = grid.window(number)
        assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
        seen[y0:y1, x0:x1] += 1
        assert number in grid.cells_of((x0, y0, x1, y1))
        assert grid.cells_of((x0, y0, x0 + 1, y0 + 1)) == [number]
    assert seen.max() == 1
    x0, y0, x1, y1 = grid.scene_box
    assert (seen[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] == 1).all()


@given(GRIDS, st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_a_crop_is_cut_along_the_same_lines(grid, offset):
    height, width = (max(1, grid.size[axis] - offset[1 - axis]) for axis in (0, 1))
    anchor = (grid.anchor[0] + offset[0], grid.anchor[1] + offset[1])
    crop = TileGrid((height, width), grid.tile, grid.overlap, grid.scale, anchor)
    for axis in (0, 1):
        # Where the first tile's corner lies, counted from the point where the grid begins.
        begins = [each.anchor[axis] / each.scale[axis] - each.offset[axis] for each in (grid, crop)]
        steps = (begins[1] - begins[0]) / grid.stride
        assert abs(steps - round(steps)) < 1e-6


def test_a_scene_of_one_tile_has_one_tile():
    assert len(TileGrid((1024, 1024), 1024, 128)) == 1
    assert len(TileGrid((1025, 1024), 1024, 128)) == 2


@pytest.mark.parametrize("overlap", [-1, 600, 2000])
def test_an_overlap_beyond_half_of_the_tile_is_refused(overlap):
    with pytest.raises(InputError, match="from 0 to 512, half of the tile"):
        TileGrid((2000, 2000), 1024, overlap)


@pytest.mark.parametrize(
    "transform",
    [
        (0.5, 0.0, 399_960.25, 0.0, -0.5, 4_600_020.0),
        (300.0379266750948, 0.0, 101985.0, 0.0, -300.041782729805, 2826915.0),
        (0.703125, 0.0, -180.3515625, 0.0, -0.703125, 90.3515625),
        (0.8, 0.6, 500_000.0, 0.6, -0.8, 5_000_000.0),
    ],
)
def test_the_anchor_of_a_crop_differs_by_its_offset(transform):
    a, b, c, d, e, f = transform
    whole = Georeference(transform, "CRS").anchor()
    for x, y in ((1, 0), (0, 1), (37, 4001), (15_000, 15_000)):
        crop = Georeference((a, b, c + a * x + b * y, d, e, f + d * x + e * y), "CRS").anchor()
        assert crop == (whole[0] + x, whole[1] + y)
