"""Importing the package: cheap, public names on demand, registered with timm in either order."""

import subprocess
import sys

import pytest

import metamixer as mm

# timm takes seconds to import, so each order is one process that checks all it can.
METAMIXER_FIRST = """
import sys
import metamixer as mm
assert not {"torch", "timm", "numpy"} & set(sys.modules)
assert "create_model" in dir(mm)
import timm
assert timm.list_models("casvit_x*") == ["casvit_xs"]
model = timm.create_model("casvit_nano", num_classes=3)
assert type(model).__module__ == "metamixer.backbones.casvit"
assert timm.models.__spec__.loader.__class__.__module__ != "metamixer._timm_registration"
config = mm.TrainConfig  # binds metamixer.train to the package
assert callable(mm.train)
"""
TIMM_FIRST = """
import timm
assert timm.list_models("casvit_x*") == []
import metamixer
assert timm.list_models("casvit_x*") == ["casvit_xs"]
assert type(timm.create_model("casvit_nano")).__module__ == "metamixer.backbones.casvit"
"""


@pytest.mark.parametrize("program", [METAMIXER_FIRST, TIMM_FIRST], ids=["metamixer first", "timm first"])
def test_registers_with_timm_in_either_order(program: str) -> None:
    answer = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", mm.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(mm, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'metamixer' has no attribute 'predct'"):
        _ = mm.predct
