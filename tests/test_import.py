"""Importing the package: cheap, public names on demand, registered with timm in either order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import timm  # noqa: F401  registers, for the test of what that loads

import metamixer as mm

# timm takes seconds to import, so each order is one process that checks all it can.
METAMIXER_FIRST = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import metamixer as mm
assert not {"torch", "timm", "numpy"} & set(sys.modules)
assert "create_model" in dir(mm)
import importlib.util
assert importlib.util.find_spec("metamixer.models")  # a question is no import
import timm
assert timm.list_models("casvit_x*") == ["casvit_xs"]
assert [path for path in opened if path.endswith(".py") or path.endswith(".pyc")]
assert not [path for path in opened if path.endswith(".safetensors")]
assert "torchvision.transforms.v2" not in sys.modules
model = timm.create_model("casvit_nano", num_classes=3)
assert type(model).__module__ == "metamixer.backbones.casvit"
assert timm.models.__spec__.loader.__class__.__module__ != "metamixer._timm_registration"
config = mm.TrainConfig  # binds metamixer.train to the package
assert callable(mm.train)
"""
TIMM_FIRST = """
import sys
import timm
assert timm.list_models("casvit_x*") == []
torchvisions = {name for name in sys.modules if name.startswith("torchvision")}
import metamixer
assert torchvisions == {name for name in sys.modules if name.startswith("torchvision")}
assert timm.list_models("casvit_x*") == ["casvit_xs"]
assert type(timm.create_model("casvit_nano")).__module__ == "metamixer.backbones.casvit"
"""


# Two families of ours fail, each in its own way, while threads import timm at once. (Where one thread imports timm and
# another a part of it, each may hold what the other waits for, and Python then gives half of it.)
FAILING = """
import sys
import threading
from types import ModuleType
import metamixer

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "metamixer.backbones.ffnet":
            raise RuntimeError("[broken]")

sys.meta_path.insert(0, Broken())
sys.modules["metamixer.backbones.affnet"] = None
import importlib.util
assert importlib.util.find_spec("timm") is not None
errors = []
def load(name):
    try:
        importlib.import_module(name)
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=load, args=[name]) for name in ("timm", "timm", "timm")]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
import timm
assert importlib.util.find_spec("timm.models") is not None
known = timm.list_models(["affnet*", "ffnet*", "casvit_xs", "dsm_t"])
assert known == ["casvit_xs", "dsm_t"], known
assert timm.create_model("casvit_nano", num_classes=3).num_classes == 3
"""


@pytest.mark.promise("clients", "timm is imported before, after or beside metamixer alike, and reads no weights")
@pytest.mark.parametrize("program", [METAMIXER_FIRST, TIMM_FIRST], ids=["metamixer first", "timm first"])
def test_registers_with_timm_in_either_order(program: str) -> None:
    answer = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.promise("clients", "A family of networks that cannot be loaded is named and left out of timm")
def test_a_family_that_cannot_be_loaded_is_said_and_left_out() -> None:
    answer = subprocess.run([sys.executable, "-W", "error", "-c", FAILING], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    lines = sorted(line for line in answer.stderr.splitlines() if line)
    assert len(lines) == 2, answer.stderr
    assert "networks of metamixer.backbones.affnet are not known to timm" in lines[0]
    assert "networks of metamixer.backbones.ffnet are not known to timm" in lines[1]
    assert "RuntimeError: [broken]" in lines[1]


def test_what_backbones_are_made_of_does_not_import_timm() -> None:
    """If it came first, timm would load the backbones, as it always does, before that file is complete."""
    loaded = [
        (name, module.__file__)
        for name, module in sys.modules.items()
        if name.startswith(("metamixer.mixers", "metamixer.ops", "metamixer.weights.load", "metamixer.weights.tags"))
    ]
    assert len(loaded) > 15
    for name, file in loaded:
        for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any((found or "").partition(".")[0] == "timm" for found in named), name


@pytest.mark.parametrize("name", mm.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(mm, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'metamixer' has no attribute 'predct'"):
        _ = mm.predct


@pytest.mark.parametrize("first", ["metamixer.backbones.base", "metamixer.tasks.classification"])
def test_whatever_is_imported_first_all_families_are_known(first: str) -> None:
    script = f"import {first}, metamixer; print(*metamixer.list_models())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"affnet_nano", "casvit_nano", "dsm_nano", "ffnet_nano", "metaformer_nano"} <= set(done.stdout.split())
    assert not done.stderr
