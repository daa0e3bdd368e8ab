"""Looped, nested and packed decoding: the same answers, whatever the company, the padding and the
parts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from samfast.decoding import decoder_output, packed_decoder
from samfast.decoding.fused_decoder import FusedDecoder
from samfast.decoding.looped_decoder import LoopedDecoder
from samfast.decoding.nested_decoder import NestedDecoder
from samfast.decoding.packed_decoder import PackedDecoder, filled_up
from samfast.device.retry import RetryOnOOM
from samfast.errors import DeviceMemoryError, NumericsError, PromptError
from samfast.model.mask_decoder import MaskDecoder
from samfast.prompts import pack_groups, prompt_buffer
from samfast.prompts.device_checks import DeviceChecks, wrong_prompts
from samfast.prompts.prompt_buffer import PromptLayout, sources_of, token_mask
from samfast.types import PADDING_LABEL, PackedPrompts, Prompts
from tests.model.tiny import TINY, random_sam

SIDE = TINY.image_size // 4
SIZE = (TINY.image_size, TINY.image_size)


class Eager:
    """As `Recorder`, without a GPU: static tensors are kept a key, and what a replay leaves there
    is overwritten."""

    def __init__(self):
        self.static = {}
        self.recorded = 0

    def __call__(self, key, static, fill, run, take):
        if key not in self.static:
            self.static[key] = static()
            self.recorded += 1
        fill(self.static[key])
        return take(run(self.static[key]))


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, TINY.out_chans, SIDE // 4, SIDE // 4, generator=generator)


def decoder(sam, how):
    if how == "graphs":
        decode = PackedDecoder(sam)
        decode.graphs = Eager()  # type: ignore[assignment]
        return decode
    return {"looped": LoopedDecoder, "nested": NestedDecoder, "packed": PackedDecoder}[how](sam)


def some(kinds, count, seed, most=1):
    """Prompts of so many objects, of one to `most` points; the first has none where something else
    speaks for it."""
    rng = torch.Generator().manual_seed(seed)
    given: dict[str, Any] = {}
    if "points" in kinds:
        lengths = [int(torch.randint(1, most + 1, (), generator=rng)) for _ in range(count)]
        if kinds != "points" and lengths:
            lengths[0] = 0
        given["points"] = [(120 * torch.rand(n, 2, generator=rng)).tolist() for n in lengths]
        given["labels"] = [[i % 2 for i in range(1, n + 1)] for n in lengths]
    if "boxes" in kinds:
        given["boxes"] = torch.rand(count, 4, generator=rng) * 50 + torch.tensor([0.0, 0, 60, 60])
    if "masks" in kinds:
        given["masks"] = torch.randn(count, 1, SIDE, SIDE, generator=rng)
    return Prompts(**given)


def groups_of(prompts):
    return pack_groups(prompts, [SIZE] * len(prompts), [SIZE] * len(prompts), (SIDE, SIDE))


def answers(decode, features, prompts, multimask=True):
    """Each image's logits and IoU."""
    groups = groups_of(prompts)
    output = decode(features, groups, multimask=multimask)
    assert not output.codes.any()
    by_image, start = {}, 0
    for packed in groups:
        for image, (first, last) in zip(packed.images, pairwise(packed.offsets), strict=True):
            rows = slice(start + first, start + last)
            by_image[image] = output.low_res[rows], output.iou[rows]
        start += len(packed)
    return [by_image[i] for i in range(len(prompts))]


def assert_alike(got, wanted):
    assert len(got) == len(wanted)
    for each, other in zip(got, wanted, strict=True):
        for a, b in zip(each, other, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype == torch.float32
            if a.numel():
                assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


MIXES = {
    "clicks": [
        ("points", 2, 1),
        ("points", 0, 1),
        ("points", 5, 1),
        ("points", 1, 1),
        ("points", 9, 1),
    ],
    "ragged clicks": [("points", n, 5) for n in (3, 1, 0, 11, 2)],
    "boxes": [("boxes", n, 1) for n in (0, 1, 6, 0, 2)],
    "both": [("points boxes", n, 3) for n in (4, 1, 0, 2, 5)],
    "masks": [("masks", n, 1) for n in (2, 0, 1, 5, 1)],
    "all three": [("points boxes masks", n, 2) for n in (3, 1, 2, 0, 1)],
    "points and masks": [("points masks", n, 3) for n in (1, 2, 0, 3, 1)],
    "each its own": [
        ("points", 3, 3),
        ("boxes", 5, 1),
        ("masks", 2, 1),
        ("points boxes", 2, 2),
        ("boxes", 1, 1),
    ],
    "nothing": [
        ("points", 0, 1),
        ("boxes", 0, 1),
        ("masks", 0, 1),
        ("boxes", 0, 1),
        ("points", 0, 1),
    ],
}


@pytest.mark.parametrize("how", ["nested", "packed", "graphs"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("multimask", [True, False])
def test_every_way_answers_as_image_by_image(sam, features, how, mix, multimask):
    prompts = [some(kinds, count, i, most) for i, (kinds, count, most) in enumerate(MIXES[mix])]
    wanted = answers(decoder(sam, "looped"), features, prompts, multimask)
    got = answers(decoder(sam, how), features, prompts, multimask)
    assert [len(iou) for _, iou in got] == [count for _, count, _ in MIXES[mix]]
    assert {low.shape[1:] for low, _ in got} == {(3 if multimask else 1, SIDE, SIDE)}
    assert_alike(got, wanted)


@pytest.mark.parametrize("how", ["nested", "packed", "graphs"])
def test_an_answer_does_not_depend_on_other_objects(sam, features, how):
    decode = decoder(sam, how)
    prompts = [some("points", n, n, 4) for n in (3, 9, 1, 0, 5)]
    together = answers(decode, features, prompts)
    for i in (0, 1, 2):
        alone = answers(decode, features[i : i + 1], [prompts[i]])
        assert_alike(alone, together[i : i + 1])


def test_padding_does_not_change_answers(sam, features, monkeypatch):
    """Poison in what a former call has left in the static tensors."""
    decode = decoder(sam, "graphs")
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    prompts = [some("points boxes masks", 3, 1, 3), some("points boxes masks", 2, 2, 2)]
    first = answers(decode, features[:2], prompts)
    for static in decode.graphs.static.values():
        static.features.fill_(float("nan"))
        static.masks.fill_(float("nan"))
        static.buffer.fill_(-1)
    again = answers(decode, features[:2], prompts)
    for each, other in zip(first, again, strict=True):
        assert torch.equal(each[0], other[0]) and torch.equal(each[1], other[1])


def test_answers_survive_later_calls(sam, features):
    decode = decoder(sam, "graphs")
    first = answers(decode, features, [some("points", 3, i, 2) for i in range(5)])
    kept = [(low.clone(), iou.clone()) for low, iou in first]
    for seed in range(5, 8):
        answers(decode, features, [some("points", 3, i + seed, 2) for i in range(5)])
    for each, other in zip(first, kept, strict=True):
        assert torch.equal(each[0], other[0]) and torch.equal(each[1], other[1])


def test_any_mix_within_the_sizes_is_recorded_once(sam, features, monkeypatch):
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    decode = decoder(sam, "graphs")
    for i, counts in enumerate([(2, 0, 1, 2), (1, 1, 3, 0), (5, 1, 0, 1), (3, 2, 2, 1)]):
        prompts = [some("points", n, 10 * i + n, 1 if i else 5) for n in counts]
        prompts[0] = Prompts(
            points=[[[5, 5], [9, 9], [1, 2], [8, 8]]] * counts[0], labels=[[1, 0, 1, 1]] * counts[0]
        )
        answers(decode, features[:4], prompts)
    assert {len(key[0].__dict__) for key in decode.graphs.static} == {6}
    layouts = [key[0] for key in decode.graphs.static]
    assert all(
        each.objects == 8 and each.sources == 4 and each.points in (3, 5) for each in layouts
    )
    assert decode.graphs.recorded == len(layouts) <= 2


@pytest.mark.parametrize(
    ("objects", "sources", "points", "boxes", "masks", "wanted"),
    [
        (1, 1, 1, False, False, (1, 1, 1, False)),
        (5, 3, 1, False, False, (8, 4, 1, False)),
        (256, 64, 2, False, False, (256, 64, 2, True)),
        (3, 1, 4, False, False, (4, 1, 5, True)),
        (3, 1, 6, False, False, (4, 1, 7, True)),
        (3, 1, 16, False, False, (4, 1, 31, True)),
        (3, 3, 0, True, False, (4, 4, 0, False)),
        (3, 3, 1, True, False, (4, 4, 1, True)),
        (3, 3, 3, True, True, (4, 4, 4, True)),
        (3, 3, 0, False, True, (4, 4, 0, False)),
    ],
)
def test_sizes_that_graphs_are_recorded_for(objects, sources, points, boxes, masks, wanted):
    layout = filled_up(PromptLayout(objects, sources, points, boxes, masks, padded=False))
    assert (layout.objects, layout.sources, layout.points, layout.padded) == wanted
    assert filled_up(layout) == layout


def test_parts_have_few_objects_and_few_images(sam, monkeypatch):
    monkeypatch.setattr(packed_decoder, "SOURCES_PER_CALL", 3)
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    decode = PackedDecoder(sam)
    batch = some_batch((1, 0, 1, 1, 1, 20, 2))
    parts = [(part.start, part.stop, part.sources, part.images) for part in decode._parts(batch)]
    assert parts == [
        (0, 3, 3, None),
        (3, 11, 2, slice(4, 6)),
        (11, 19, 1, slice(5, 6)),
        (19, 26, 2, slice(5, 7)),
    ]


def some_batch(counts):
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    points = torch.rand(offsets[-1], 1, 2, generator=torch.Generator().manual_seed(1)) * 100
    labels = torch.ones(offsets[-1], 1, dtype=torch.int64)
    return PackedPrompts(points, labels, None, None, tuple(offsets))


def test_a_buffer_holds_the_prompts_and_padding():
    layout = PromptLayout(objects=4, sources=2, points=3, boxes=True, masks=False, padded=True)
    coords, labels = torch.rand(3, 2, 2), torch.tensor([[1, 0], [1, PADDING_LABEL], [-1, 1]])
    boxes, image_of = torch.rand(3, 4), torch.tensor([7, 7, 5])
    written = layout.write(coords, labels, boxes, image_of)
    assert written.dtype == torch.int32 and written.shape == (layout.size,)
    views = layout.views(written)
    assert views.coords is not None and views.labels is not None and views.boxes is not None
    assert torch.equal(views.coords[:3, :2], coords) and torch.equal(views.boxes[:3], boxes)
    assert torch.equal(views.labels[:3, :2].long(), labels)
    assert (views.labels[:3, 2] == PADDING_LABEL).all() and (views.labels[3] == -1).all()
    assert views.source_of.tolist() == [0, 0, 1, 0] and views.sources.tolist() == [7, 5]
    assert token_mask(views.labels, boxes=True)[1].tolist() == [True, False, False, True, True]
    assert views.coords.untyped_storage().data_ptr() == written.untyped_storage().data_ptr()


@pytest.mark.parametrize("points", [0, 3])
@pytest.mark.parametrize("boxes", [True, False])
def test_a_buffer_written_on_the_host_equals_one_written_on_a_device(monkeypatch, points, boxes):
    layout = PromptLayout(
        objects=8, sources=4, points=points, boxes=boxes, masks=False, padded=True
    )
    given = (
        torch.rand(5, 2, 2, dtype=torch.float64) if points else None,
        torch.tensor([[1, PADDING_LABEL]] * 5) if points else None,
        torch.rand(5, 4, dtype=torch.bfloat16) if boxes else None,
        torch.tensor([7, 7, 5, 0, 0]),
    )
    here = layout.write(*given)
    monkeypatch.setattr(prompt_buffer, "on_host", lambda values: False)
    assert torch.equal(layout.write(*given), here)


class Gpu:
    """A GPU on which prompts of at most so many objects can be embedded at once, from a given call
    on."""

    def __init__(self, monkeypatch, sam, most, first=0):
        self.calls: list[int] = []

        def forward(points, boxes, masks, embed=sam.prompt_encoder.forward):
            count = len(points[0] if points is not None else boxes if boxes is not None else masks)
            self.calls.append(count)
            if count > most and len(self.calls) > first:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(points=points, boxes=boxes, masks=masks)

        monkeypatch.setattr(sam.prompt_encoder, "forward", forward)


@pytest.mark.parametrize("how", ["looped", "nested", "packed", "graphs"])
@pytest.mark.parametrize("mix", ["clicks", "ragged clicks", "boxes", "each its own"])
def test_out_of_memory_goes_on_with_half_as_many_objects(
    sam, features, monkeypatch, caplog, how, mix
):
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    given = groups_of([some(*each[:2], seed, each[2]) for seed, each in enumerate(MIXES[mix])])
    wanted = decoder(sam, how)(features, given, multimask=True)
    gpu = Gpu(monkeypatch, sam, 4)
    decode = decoder(sam, how)
    got = decode(features, given, multimask=True, retry=RetryOnOOM("the message"))
    assert_alike([(got.low_res, got.iou)], [(wanted.low_res, wanted.iou)])
    assert torch.equal(got.codes, wanted.codes)
    lines = [record.getMessage() for record in caplog.records if record.name == "samfast"]
    assert len(lines) == sum(count > 4 for count in gpu.calls) == 1
    assert lines[0].endswith("half as many. the message")


@pytest.mark.parametrize("how", ["looped", "nested", "packed", "graphs"])
def test_objects_decoded_before_memory_ran_out_are_kept(sam, features, monkeypatch, how):
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    given = groups_of([some("points", 19, 1)])
    gpu = Gpu(monkeypatch, sam, 4, first=1)
    answer = decoder(sam, how)(features, given, multimask=True, retry=RetryOnOOM())
    assert [*gpu.calls[:4], sum(gpu.calls[4:])] == [8, 8, 4, 4, 4 if how == "graphs" else 3]
    monkeypatch.undo()
    wanted = decoder(sam, how)(features, given, multimask=True)
    assert_alike([(answer.low_res, answer.iou)], [(wanted.low_res, wanted.iou)])


@pytest.mark.parametrize("how", ["looped", "nested", "packed", "graphs"])
def test_out_of_memory_twice_is_an_error_and_the_next_call_is_answered(
    sam, features, monkeypatch, how
):
    monkeypatch.setitem(decoder_output.OBJECTS_PER_CALL, "cpu", 8)
    given = groups_of([some("points", 19, 1)])
    decode = decoder(sam, how)
    with monkeypatch.context() as patch:
        gpu = Gpu(patch, sam, 2)
        with pytest.raises(DeviceMemoryError, match="half the size too: the message"):
            decode(features, given, multimask=True, retry=RetryOnOOM("the message"))
        assert gpu.calls == [8, 4]
        with pytest.raises(
            torch.OutOfMemoryError
        ):  # who calls without one, as `segment`, halves himself
            decode(features, given, multimask=True)
        with pytest.raises(DeviceMemoryError):
            decode.batched(features, given, multimask=True, retry=RetryOnOOM())
    got, wanted = (
        decode(features, given, multimask=True),
        decoder(sam, how)(features, given, multimask=True),
    )
    assert torch.equal(got.low_res, wanted.low_res)


@pytest.mark.parametrize("how", ["looped", "nested", "packed", "graphs"])
def test_too_little_memory_for_the_output_is_reported_at_once(sam, features, monkeypatch, how):
    def empty(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder_output.DecoderOutput, "empty", empty)
    with pytest.raises(DeviceMemoryError, match="the message"):
        decoder(sam, how)(
            features,
            groups_of([some("boxes", 3, 1)]),
            multimask=True,
            retry=RetryOnOOM("the message"),
        )


@pytest.mark.parametrize("multimask", [True, False])
def test_objects_of_low_predicted_iou_are_not_upscaled(sam, features, monkeypatch, multimask):
    given = groups_of([some("points", n, n, 2) for n in (3, 6)])
    decode = decoder(sam, "looped")
    whole = decode(features, given, multimask=multimask)
    best = whole.iou.amax(1)
    upscaled: list[int] = []
    masks = sam.mask_decoder.mask_logits

    def counted(tokens, image):
        upscaled.append(len(tokens))
        return masks(tokens, image)

    monkeypatch.setattr(sam.mask_decoder, "mask_logits", counted)
    for least in (-9.0, float(best.median()), 9.0):
        good = best > least
        upscaled.clear()
        answer = decode(features, given, multimask=multimask, min_iou=least)
        assert sum(upscaled) == int(good.sum())
        assert torch.equal(answer.iou, whole.iou) and not answer.codes.any()
        assert_alike([(answer.low_res[good], best)], [(whole.low_res[good], best)])
        assert not answer.low_res[~good].any()
    broken = features.clone()
    broken[1] = float("nan")
    answer = decode(broken, given, multimask=multimask, min_iou=-9.0)
    assert answer.codes.tolist() == [0] * 3 + [1] * 6


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_low_predicted_iou_in_several_images_is_not_upscaled(
    sam, features, monkeypatch, multimask, fuse
):
    given = groups_of([some("points", n, n, 2) for n in (3, 0, 6)])
    decode = PackedDecoder(sam, fuse=fuse)
    whole = decode(features, given, multimask=multimask)
    best = whole.iou.amax(1)
    upscaled: list[int] = []
    if fuse:
        plain = FusedDecoder._masks
        monkeypatch.setattr(
            FusedDecoder,
            "_masks",
            lambda self, images, size, tokens, chosen: (
                upscaled.append(len(tokens)) or plain(self, images, size, tokens, chosen)
            ),
        )
    else:
        masks = sam.mask_decoder.mask_logits
        monkeypatch.setattr(
            sam.mask_decoder,
            "mask_logits",
            lambda tokens, image: upscaled.append(len(tokens)) or masks(tokens, image),
        )
    for least in (-9.0, float(best.median()), 9.0):
        good = best > least
        upscaled.clear()
        answer = decode(features, given, multimask=multimask, min_iou=least)
        assert sum(upscaled) == int(good.sum())
        assert_alike([(answer.low_res[good], answer.iou)], [(whole.low_res[good], whole.iou)])
        assert not answer.low_res[~good].any()


def test_a_decoder_of_another_class_is_called_as_it_is(sam, features, monkeypatch):
    class Other(MaskDecoder):
        pass

    given = groups_of([some("points", 3, 1)])
    decode = decoder(sam, "looped")
    whole = decode(features, given, multimask=True)
    monkeypatch.setattr(sam.mask_decoder, "__class__", Other)
    answer = decode(features, given, multimask=True, min_iou=9.0)
    assert torch.equal(answer.low_res, whole.low_res)


def test_no_step_on_the_host_uses_torch_s_threads(sam, features, monkeypatch):
    """For a few dozen numbers that takes milliseconds where there are many."""
    batches = groups_of([some("points boxes", n, n, 3) for n in (4, 1, 0, 2, 5)])
    monkeypatch.setattr(torch, "repeat_interleave", None)
    decode = decoder(sam, "graphs")
    assert len(decode(features, batches, multimask=True).iou) == 12
    assert len(wrong_prompts(batches[0], [SIZE] * 5)) == 12


def test_sources_are_the_images_that_have_objects():
    assert sources_of(torch.tensor([2, 2, 5, 0, 0])).tolist() == [0, 0, 1, 2, 2]
    assert sources_of(torch.empty(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("how", ["looped", "nested", "packed", "graphs"])
def test_a_non_finite_answer_is_flagged_for_its_object_alone(sam, features, how):
    decode = decoder(sam, how)
    broken = features.clone()
    broken[2, 0, 0, 0] = float("nan")
    groups = groups_of([some("points", n, n) for n in (3, 0, 2, 4, 1)])
    answer = decode(broken, groups, multimask=True)
    assert answer.codes.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    with pytest.raises(
        NumericsError, match=r"image 2, object 0 \(and 1 objects more\): the answer holds NaN"
    ):
        DeviceChecks(answer.codes, range(5), groups[0].offsets)()
    DeviceChecks(answer.codes[:3], (0,), (0, 3))()


def test_a_wrong_prompt_is_reported_before_its_answer():
    codes = torch.tensor([0, 0, 1 | 2, 4], dtype=torch.uint8)
    with pytest.raises(PromptError, match=r"image 8, object 0 .*a point or box lies outside"):
        DeviceChecks(codes, (7, 9, 8), torch.tensor([0, 2, 2, 4]))()
    with pytest.raises(PromptError, match="object 0: a label is none of 1"):
        DeviceChecks(codes[3:], (0,), (0, 1))()


def test_wrong_prompts_are_flagged():
    nan, inf = float("nan"), float("inf")
    points = torch.tensor(
        [[[5.0, 5]], [[nan, 5]], [[101, 5]], [[-1, 5]], [[5, inf]], [[100, 60]], [[1, 1]], [[1, 1]]]
    )
    labels = torch.tensor([[1], [1], [1], [1], [1], [0], [3], [PADDING_LABEL]])
    packed = PackedPrompts(points, labels, None, None, (0, 8))
    assert wrong_prompts(packed, [(60, 100)]).tolist() == [0, 2, 2, 2, 2, 0, 4, 4]
    boxes = torch.tensor(
        [
            [0.0, 0, 9, 9],
            [9, 0, 9, 9],
            [0, 0, inf, 9],
            [nan, 0, 9, 9],
            [100, 0, 105, 9],
            [-9, -9, 200, 200],
        ]
    )
    packed = PackedPrompts(None, None, boxes, None, (0, 2, 6))
    assert wrong_prompts(packed, [(60, 100)] * 2).tolist() == [0, 2, 2, 2, 2, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_prompts_of_every_real_dtype_are_checked(dtype):
    points = torch.tensor([[[5, 5]], [[200, 5]], [[100, 60]]], dtype=dtype)
    boxes = torch.tensor([[0, 0, 9, 9], [9, 0, 9, 9], [100, 0, 105, 9]], dtype=dtype)
    if dtype.is_floating_point:
        points.requires_grad_()
        boxes.requires_grad_()
    labels = torch.ones(3, 1, dtype=torch.int64)
    packed = PackedPrompts(points, labels, None, None, (0, 3))
    assert wrong_prompts(packed, [(60, 100)]).tolist() == [0, 2, 0]
    packed = PackedPrompts(None, None, boxes, None, (0, 3))
    assert wrong_prompts(packed, [(60, 100)]).tolist() == [0, 2, 2]


def test_no_prompts_of_no_images_are_not_wrong():
    packed = PackedPrompts(torch.zeros(0, 1, 2), torch.zeros(0, 1), None, None, (0,))
    assert wrong_prompts(packed, []).tolist() == []


def test_a_decoder_describes_how_it_runs(sam):
    assert "image by image" in decoder(sam, "looped").describe()
    assert "nested tensors" in decoder(sam, "nested").describe()
    assert "packed prompts of all images, 4 objects" in decoder(sam, "packed").describe()
    assert "replayed as CUDA graphs" in decoder(sam, "graphs").describe()
    assert "nested tensors" in decoder(sam, "looped").batched.describe()
