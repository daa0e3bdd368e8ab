"""The decoder's attention by CUDA C++: it compiles here, and is right on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from samfast.decoding import decoder_operations
from samfast.decoding.kernels import (
    hopper_image_to_token,
    hopper_token_to_image,
    image_to_token,
    token_to_image,
)
from samfast.device import cuda_programs
from tests.kernels.decoder_operands import (
    Draw,
    check,
    image_to_token_inputs,
    relative,
    token_to_image_inputs,
)
from tests.kernels.hopper import HALVES, on_hopper

# One object or place; pairs that are not full; places that end within a tile; as many objects as
# a photo's points, more than there are blocks.
OBJECTS = [[1], [0, 1], [1, 1, 0], [0, 1] * 30]
PLACES = [1, 63, 64, 100, 4096]
MANY = [0, 1] * 128


@pytest.fixture(autouse=True)
def poison():
    """Memory that a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@on_hopper
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("sources", OBJECTS, ids=len)
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_image_to_token(dtype, places, sources, tokens, masked):
    arguments = image_to_token_inputs(Draw(dtype), 8, tokens, sources, places, 256, masked)
    assert hopper_image_to_token.takes(arguments[0], arguments[2], arguments[3])
    check(image_to_token, decoder_operations.image_to_token_attention, arguments)


@on_hopper
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("sources", OBJECTS, ids=len)
@pytest.mark.parametrize("tokens", [1, 7, 8])
@pytest.mark.parametrize("scale", [0.25, 40.0])
def test_token_to_image(dtype, places, sources, tokens, scale):
    *arguments, _ = token_to_image_inputs(Draw(dtype), 8, tokens, sources, places, 256)
    assert hopper_token_to_image.takes(arguments[0], arguments[3])
    check(token_to_image, decoder_operations.token_to_image_attention, (*arguments, scale))


@on_hopper
def test_as_many_objects_as_a_photo_has_points():
    """Each object apart: an error in one of many would be lost in the norm of all."""
    draw = Draw(torch.bfloat16)
    for module, operation, inputs in (
        (
            image_to_token,
            decoder_operations.image_to_token_attention,
            image_to_token_inputs(draw, 8, 7, MANY, 4096, 256, masked=True),
        ),
        (
            token_to_image,
            decoder_operations.token_to_image_attention,
            token_to_image_inputs(draw, 8, 7, MANY, 4096, 256),
        ),
    ):
        answer, truth = module.launch(*inputs), operation.function(*inputs)
        objects = 0 if module is image_to_token else 1
        pairs = zip(answer.unbind(objects), truth.unbind(objects), strict=True)
        assert max(relative(each, wanted) for each, wanted in pairs) <= 0.01
        assert all(torch.equal(module.launch(*inputs), answer) for _ in range(10))


@on_hopper
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_image_to_token_in_place(dtype):
    arguments = image_to_token_inputs(Draw(dtype), 8, 7, [0, 1], 4000, 256, masked=True)
    wanted = image_to_token.launch(*arguments)
    assert image_to_token.launch(*arguments, out=arguments[0]) is arguments[0]
    assert torch.equal(arguments[0], wanted)


@on_hopper
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_token_to_image_in_any_number_of_splits(splits):
    arguments = token_to_image_inputs(Draw(torch.bfloat16), 8, 7, [1, 0, 1], 700, 256)
    operation = decoder_operations.token_to_image_attention
    check(token_to_image, operation, arguments, splits=splits)


@on_hopper
def test_nan_is_not_lost():
    draw = Draw(torch.bfloat16)
    image = image_to_token_inputs(draw, 8, 7, [0, 1], 128, 256, masked=False)
    tokens = token_to_image_inputs(draw, 8, 7, [0, 1], 128, 256)
    image[0][0, 77, 5] = tokens[1][0, 77, 5] = torch.nan
    rows = image_to_token.launch(*image)
    assert rows[0, 77].isnan().all() and rows.isnan().sum() == 256
    answer = token_to_image.launch(*tokens)
    assert answer[:, 0].isnan().all() and not answer[:, 1].isnan().any()


@on_hopper
def test_triton_does_what_they_do_not_take():
    draw = Draw(torch.bfloat16)
    for heads, tokens, channels in ((8, 9, 256), (4, 7, 256), (8, 7, 128)):
        image = image_to_token_inputs(draw, heads, tokens, [0, 1], 100, channels, masked=False)
        assert not hopper_image_to_token.takes(image[0], image[2], image[3])
        queries = token_to_image_inputs(draw, heads, tokens, [0, 1], 100, channels)
        assert not hopper_token_to_image.takes(queries[0], queries[3])
    image = image_to_token_inputs(draw, 8, 7, [0, 1], 100, 256, masked=False)
    rows, _, source_of, keys, _, _, *vectors, _, _ = image
    assert hopper_image_to_token.takes(rows, source_of, keys, vectors)
    assert not hopper_image_to_token.takes(rows, source_of, keys, [vectors[0].float()])


def test_a_cpu_is_not_taken():
    rows, source_of = torch.zeros(1, 64, 256).bfloat16(), torch.zeros(1, dtype=torch.int64)
    tokens = torch.zeros(8, 1, 7, 256).bfloat16()
    assert not hopper_image_to_token.takes(rows, source_of, tokens)
    assert not hopper_token_to_image.takes(tokens, source_of)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("module", [hopper_image_to_token, hopper_token_to_image])
def test_they_compile_without_a_gpu(module, dtype):
    """The compiler says so where products would wait for one another, for lack of registers."""
    pytest.importorskip("cuda.bindings")
    code, said = cuda_programs.compile_program(module.program(dtype))
    assert code.startswith(b"\x7fELF")
    assert "serialized" not in said and "warning" not in said.lower()
