"""The JSON that is written by hand is what `json` writes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from samfast.serve.mask_formats import rendered, rle_json
from samfast.serve.messages import MaskAnswer, ObjectAnswer

COCO_LETTERS = "".join(map(chr, range(48, 112)))

pixels = st.integers(0, 1 << 40)
masks = st.builds(
    MaskAnswer,
    counts=st.text(COCO_LETTERS),
    size=st.tuples(pixels, pixels),
    predicted_iou=st.floats(allow_nan=False, allow_infinity=False),
    area=pixels,
    bbox=st.tuples(pixels, pixels, pixels, pixels),
    ref=st.from_regex(r"[0-9a-f]{16}-[0-9]{1,3}\.[0-9]", fullmatch=True),
)


@given(st.lists(st.builds(ObjectAnswer, st.lists(masks, max_size=3).map(tuple)), max_size=3))
def test_an_answer_is_what_json_writes(answers):
    value = {"objects": rendered(answers, "rle")}
    assert rle_json(answers) == json.dumps(value, separators=(",", ":")).encode()
    assert json.loads(rle_json(answers)) == json.loads(json.dumps(value))
