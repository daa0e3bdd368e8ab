"""samfast under the original's name, for one test at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from samfast.segment_anything.install import install_as_segment_anything
from tests import oracle
from tests.pairs import forget_original


@pytest.fixture
def installed() -> Iterator[None]:
    """`import segment_anything` is samfast until the test ends."""
    oracle.load()
    saved = forget_original()
    install_as_segment_anything()
    yield
    forget_original()
    sys.modules.update(saved)
