"""NPZ: bit-exact, readable by plain numpy without pickle, small."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from samfast.errors import InputError, OutputError
from samfast.outputs import read_npz, records_of, write_masks_npz, write_records_npz
from samfast.types import Masks


def answer(count: int, size: tuple[int, int] = (21, 34)) -> Masks:
    generator = torch.Generator().manual_seed(1)
    return Masks(
        torch.rand(count, 3, *size, generator=generator) > 0.6,
        torch.rand(count, 3, generator=generator),
        torch.randn(count, 3, 8, 8, generator=generator),
    )


@pytest.mark.parametrize("count", [0, 1, 4])
def test_masks_are_bit_exact(tmp_path: Path, count: int) -> None:
    masks = answer(count)
    write_masks_npz(tmp_path / "a.npz", masks)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"masks", "iou", "low_res", "bbox"}
        assert file["masks"].dtype == bool
        assert np.array_equal(file["masks"], masks.masks.numpy())
        assert np.array_equal(file["iou"], masks.iou.numpy())
        assert np.array_equal(file["low_res"], masks.low_res.numpy())
        assert file["bbox"].shape == (count, 3, 4)
    for name, array in read_npz(tmp_path / "a.npz").items():
        assert array.shape[0] == count, name


def test_bbox_of_masks(tmp_path: Path) -> None:
    masks = torch.zeros(1, 2, 9, 9, dtype=torch.bool)
    masks[0, 0, 2:5, 3:8] = True
    write_masks_npz(tmp_path / "a.npz", Masks(masks, torch.zeros(1, 2), torch.zeros(1, 2, 4, 4)))
    assert read_npz(tmp_path / "a.npz")["bbox"].tolist() == [[[3, 2, 4, 2], [0, 0, 0, 0]]]


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    masks = answer(2)
    write_masks_npz(
        tmp_path / "a.npz", Masks(masks.masks, masks.iou.bfloat16(), masks.low_res.bfloat16())
    )
    read = read_npz(tmp_path / "a.npz")
    assert read["iou"].dtype == read["low_res"].dtype == np.float32
    assert np.array_equal(read["low_res"], masks.low_res.bfloat16().float().numpy())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_records(tmp_path: Path, count: int) -> None:
    masks = answer(count)
    points = [[[1.0, 2.0]] * (index % 3) for index in range(count)]
    records = records_of(masks, torch.rand(count, 3), points)
    write_records_npz(tmp_path / "a.npz", records, (21, 34))
    read = read_npz(tmp_path / "a.npz")
    assert np.array_equal(read["masks"], masks.best().numpy())
    assert read["masks"].shape == (count, 21, 34)
    for name in ("area", "bbox", "predicted_iou", "stability_score", "crop_box"):
        assert read[name].tolist() == [record[name] for record in records], name
    offsets = read["point_offsets"]
    assert len(offsets) == count + 1
    for index, record in enumerate(records):
        clicks = read["point_coords"][offsets[index] : offsets[index + 1]]
        assert clicks.tolist() == record["point_coords"]


def test_it_is_compressed_and_repeatable(tmp_path: Path) -> None:
    masks = torch.zeros(5, 1, 400, 500, dtype=torch.bool)
    masks[:, :, 100:300, 50:200] = True
    both = Masks(masks, torch.zeros(5, 1), torch.zeros(5, 1, 4, 4))
    write_masks_npz(tmp_path / "a.npz", both)
    write_masks_npz(tmp_path / "b.npz", both)
    assert (tmp_path / "a.npz").stat().st_size < masks.numel() / 50
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_records_of_another_size(tmp_path: Path) -> None:
    records = records_of(answer(2), torch.rand(2, 3))
    with pytest.raises(InputError, match="mask 0: is 21 x 34, its image 34 x 21"):
        write_records_npz(tmp_path / "a.npz", records, (34, 21))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupt)  # after the masks were written
    with pytest.raises(KeyboardInterrupt):
        write_masks_npz(tmp_path / "a.npz", answer(2))
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path: Path) -> None:
    write_masks_npz(tmp_path / "a.npz", answer(2))
    data = (tmp_path / "a.npz").read_bytes()
    for content in (b"", b"text", data[:100], data[: len(data) // 2], data[:-30]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.npz: .*; "):
            read_npz(tmp_path / "b.npz")
    pickled = np.array([{"a": 1}], object)
    np.savez(tmp_path / "c.npz", masks=pickled)
    with pytest.raises(InputError, match="no NPZ file, or damaged"):
        read_npz(tmp_path / "c.npz")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_npz(tmp_path / "gone.npz")
    with pytest.raises(OutputError, match="there is no folder"):
        write_masks_npz(tmp_path / "gone" / "a.npz", answer(1))


def repack(path: Path, **arrays: object) -> None:
    """Write the file again with other arrays; None leaves one out."""
    with np.load(path) as old:
        kept = {name: old[name] for name in old.files}
    new = {name: array for name, array in {**kept, **arrays}.items() if array is not None}
    np.savez_compressed(path, **new)  # type: ignore[arg-type]


MISFITS: dict[str, tuple[str, object]] = {
    "masks of numbers": ("masks", np.zeros((2, 3, 21, 34), np.uint8)),
    "fewer masks": ("masks", np.zeros((1, 3, 21, 34), bool)),
    "masks without objects": ("masks", np.zeros((3, 21, 34), bool)),
    "iou of another object": ("iou", np.zeros((3, 3), np.float32)),
    "iou in double precision": ("iou", np.zeros((2, 3))),
    "logits of fewer masks": ("low_res", np.zeros((2, 2, 8, 8), np.float32)),
    "boxes of five numbers": ("bbox", np.zeros((2, 3, 5), np.int64)),
    "no boxes": ("bbox", None),
    "pickled": ("low_res", np.array([{}], object)),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path: Path, misfit: str) -> None:
    write_masks_npz(tmp_path / "a.npz", answer(2))
    name, array = MISFITS[misfit]
    repack(tmp_path / "a.npz", **{name: array})
    with pytest.raises(InputError, match=r"a\.npz: .*; write it again"):
        read_npz(tmp_path / "a.npz")


def test_records_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    for name, array in {"area": np.zeros(3, np.int64), "point_offsets": np.zeros(2, int)}.items():
        records = records_of(answer(2), torch.rand(2, 3))
        write_records_npz(tmp_path / "a.npz", records, (21, 34))
        repack(tmp_path / "a.npz", **{name: array})
        with pytest.raises(InputError, match=r"a\.npz"):
            read_npz(tmp_path / "a.npz")


def bomb(path: Path, shape: tuple[int, ...], size: int) -> None:
    """A file of few bytes whose masks are `size` zeros, with a header that says `shape`."""
    write_masks_npz(path, answer(2))
    arrays = read_npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("masks.npy", "w") as file:
            header = {"descr": "|b1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
        for name in ("iou", "low_res", "bbox"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, arrays[name])


def test_a_zip_bomb_is_refused_before_it_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb(tmp_path / "a.npz", (2, 3, 1 << 12, 1 << 12), 96 << 20)
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "read_array", None)
        with pytest.raises(
            InputError, match=r"take 1006.* bytes, more than 67108864; if you trust"
        ):
            read_npz(tmp_path / "a.npz", max_bytes=64 << 20)
    assert read_npz(tmp_path / "a.npz")["masks"].shape == (2, 3, 1 << 12, 1 << 12)


@pytest.mark.parametrize("shape", [(2, 3, 21, 34), (2, 3, 1 << 20, 1 << 20)])
def test_a_header_that_lies_about_its_size_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    bomb(tmp_path / "a.npz", shape, 8 << 20)
    with pytest.raises(InputError, match=r"damaged \(masks.npy has \d+ bytes, not \d+\)"):
        read_npz(tmp_path / "a.npz")
