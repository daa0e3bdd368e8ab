from __future__ import annotations

import math

import torch

from samfast.bench.consistency import company_errors
from samfast.recipes import Recipe, apply
from tests.model.tiny import TINY, random_sam

PIXELS = torch.randn(
    8, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(0)
)


def test_the_encoder_answers_alike_in_any_company():
    encode = apply(random_sam(), Recipe(), torch.device("cpu"), batch_size=8).encode
    found = company_errors(encode, PIXELS, (1, 2, 7, 8))
    assert list(found) == [1, 2, 7, 8]
    assert max(found.values()) < 1e-5


def test_an_encoder_that_mixes_its_images_is_found():
    def mixing(pixels):
        return pixels + 0.01 * pixels.mean(dim=0)

    def by_place(pixels):
        return pixels * torch.arange(1.0, len(pixels) + 1).view(-1, 1, 1, 1)

    assert company_errors(mixing, PIXELS, (1, 4))[4] > 1e-3
    assert company_errors(mixing, PIXELS, (1, 4))[1] == 0
    assert company_errors(by_place, PIXELS, (2,))[2] == 1


def test_not_a_number_is_no_agreement():
    def broken(pixels):
        return pixels if len(pixels) == 1 else pixels * math.nan

    assert math.isnan(company_errors(broken, PIXELS, (1, 2))[2])
