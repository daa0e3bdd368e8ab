"""Random operands of the decoder's kernels, and how exact a kernel has to be."""

from __future__ import annotations

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter's bfloat16 product is wrong, so a GPU tests it; there the kernels skip float32.
DTYPES = [torch.float16, torch.bfloat16 if CUDA else torch.float32]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def double(arguments):
    """The arguments, tensors of floating point in float64."""
    return [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments
    ]


def check(module, operation, arguments, **options):
    """The error against float64 is at most twice the reference's in the same dtype, or 1e-6."""
    answer = module.launch(*arguments, **options)
    truth = operation.function(*double(arguments))
    allowed = 2 * relative(operation.function(*arguments), truth)
    assert answer.shape == truth.shape and answer.dtype == arguments[0].dtype
    assert answer.is_contiguous()
    assert relative(answer, truth) <= max(allowed, 1e-6)


class Draw:
    """Random tensors of one dtype, the same for a seed."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *sizes: int, spread: float = 1.0) -> torch.Tensor:
        return (torch.randn(*sizes, generator=self.generator) * spread).to(DEVICE, self.dtype)


def token_attention_inputs(draw: Draw, heads, tokens, count, width, masked):
    mask = None
    if masked:
        mask = torch.rand(count, tokens, generator=draw.generator).to(DEVICE) < 0.5
        mask[:, 0] = True
    return (*(draw(count, tokens, heads * width) for _ in range(3)), mask, heads)


def token_to_image_inputs(draw: Draw, heads, tokens, sources, places, channels):
    return (
        draw(heads, len(sources), tokens, channels, spread=channels**-0.5),
        draw(2, places, channels),
        draw(places, channels),
        torch.tensor(sources, device=DEVICE),
        2.0,
    )


def image_to_token_inputs(draw: Draw, heads, tokens, sources, places, channels, masked):
    count = len(sources)
    score_bias = torch.randn(heads, count, tokens, generator=draw.generator).to(DEVICE)
    if masked:
        real = torch.rand(count, tokens, generator=draw.generator).to(DEVICE) < 0.5
        real[:, 0] = True
        score_bias = score_bias.masked_fill(~real, float("-inf"))
    return (
        draw(2, places, channels),
        draw(places, channels),
        torch.tensor(sources, device=DEVICE),
        draw(heads, count, tokens, channels, spread=channels**-0.5),
        score_bias,
        draw(heads, count, tokens, channels),
        draw(channels),
        draw(channels),
        draw(channels),
        1e-5,
        2.0,
    )
