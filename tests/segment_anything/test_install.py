"""After installing, samfast has every module and public name of segment_anything 1.0."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from samfast.errors import UsageError
from samfast.segment_anything.install import install_as_segment_anything
from tests import oracle
from tests.pairs import forget_original

# Names that the original's modules define or import from one another.
original = oracle.load()
MODULES = ["segment_anything"] + [
    info.name for info in pkgutil.walk_packages(original.__path__, "segment_anything.")
]


def public(module_name: str) -> dict[str, object]:
    module = importlib.import_module(module_name)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            getattr(value, "__module__", "").partition(".")[0] == "segment_anything"
            or (inspect.ismodule(value) and value.__name__.partition(".")[0] == "segment_anything")
            or name == "sam_model_registry"
        )
    }


THEIRS = {name: public(name) for name in MODULES}


def test_the_original_has_its_15_modules_and_over_90_names() -> None:
    assert len(MODULES) == 15
    assert "window_partition" in THEIRS["segment_anything.modeling.image_encoder"]
    assert sum(map(len, THEIRS.values())) > 90


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("module_name", MODULES)
def test_every_public_name(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert module.__name__.startswith("samfast.segment_anything")
    for name, their in THEIRS[module_name].items():
        ours = getattr(module, name)
        assert inspect.isclass(ours) == inspect.isclass(their), name
        if inspect.ismodule(their) or isinstance(their, dict):
            continue
        expected = [(p.name, p.kind) for p in inspect.signature(their).parameters.values()]
        got = [(p.name, p.kind) for p in inspect.signature(ours).parameters.values()]
        if name == "MaskData":
            continue
        assert len(got) >= len(expected), name
        if inspect.isclass(ours):
            assert got[: len(expected)] == expected, name


@pytest.mark.usefixtures("installed")
def test_the_registry() -> None:
    import segment_anything

    assert {"default", "vit_h", "vit_l", "vit_b", "vit_xs"} == set(
        segment_anything.sam_model_registry
    )
    assert segment_anything.sam_model_registry["default"] is segment_anything.build_sam


def test_a_second_install_changes_nothing(installed) -> None:
    before = sys.modules["segment_anything"]
    install_as_segment_anything()
    assert sys.modules["segment_anything"] is before


def test_install_is_refused_after_the_original_was_imported() -> None:
    oracle.load()
    before = dict(sys.modules)
    with pytest.raises(UsageError, match="before anything imports segment_anything"):
        install_as_segment_anything()
    assert dict(sys.modules) == before


def test_import_statements_in_a_fresh_process() -> None:
    program = """
from samfast.segment_anything.install import install_as_segment_anything
install_as_segment_anything()
import segment_anything
from segment_anything.modeling.image_encoder import window_partition
import segment_anything.utils.onnx
import segment_anything.utils.onnx as onnx
from segment_anything.utils import amg, transforms
from segment_anything.build_sam import _build_sam, sam_model_registry
from segment_anything import SamPredictor, SamAutomaticMaskGenerator, build_sam_vit_b
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling import TwoWayTransformer
assert onnx is segment_anything.utils.onnx
assert segment_anything.modeling.Sam is Sam
assert SamPredictor.__module__ == "samfast.segment_anything.predictor"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_forgetting_leaves_no_trace(installed) -> None:
    forget_original()
    assert not [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]
