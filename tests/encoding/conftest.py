"""The model of the tests of encoders."""

from __future__ import annotations

import pytest

from samfast.model.sam import Sam
from tests.encoding.small_encoder import small_sam


@pytest.fixture
def sam() -> Sam:
    return small_sam()
