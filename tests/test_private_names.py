"""Names that the packages we stand on do not promise to keep: one row each, and a clear sentence when one goes."""

from __future__ import annotations

import ast
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import metamixer
from metamixer.deploy import targets
from metamixer.deploy.targets import private
from metamixer.errors import MetamixerError

# module, name, what it is used for, what to do when it is gone
NAMES = [
    (
        "torch.fx.experimental.symbolic_shapes",
        "has_static_value",
        "torch.compile gives out its symbols as integers, and nothing else tells them apart (ops/tracing.py)",
        "look in torch.compiler or torch.fx.experimental for another; without one every size is compiled anew",
    ),
    (
        "torch._inductor",
        "aoti_compile_and_package",
        "AOTInductor's own documentation names it, and there is no public one (deploy/aotinductor.py)",
        "look in torch's notes of the release for the name of compiling an exported program ahead of time",
    ),
    (
        "torch._inductor",
        "aoti_load_package",
        "as aoti_compile_and_package (deploy/aotinductor.py)",
        "look in torch's notes of the release for the name of loading a compiled package",
    ),
    (
        "executorch.extension.pybindings.portable_lib",
        "_unsafe_reset_threadpool",
        "the only way to say how many threads ExecuTorch's Python runtime takes (deploy/executorch.py)",
        "look for a setting of threads in executorch.runtime; without one `metamixer bench --threads` must refuse it",
    ),
    (
        "torch.utils.data.dataloader",
        "_MultiProcessingDataLoaderIter._workers",
        "the processes that read, to tell which of them died (data/reading.py)",
        "look in torch.utils.data for the loader's processes; without them a dead one is not named",
    ),
    (
        "accelerate.state",
        "AcceleratorState._reset_state",
        "Accelerate keeps the first precision for the whole process (train/distributed.py)",
        "look for a public way to begin anew; without one a second run in a process keeps the first one's precision",
    ),
]


@pytest.mark.promise("tests", "a private name of another package that goes is told by a test, with what to do then")
@pytest.mark.parametrize(("module", "name", "why", "remedy"), NAMES, ids=[f"{row[0]}.{row[1]}" for row in NAMES])
def test_private_name_is_there(module: str, name: str, why: str, remedy: str) -> None:
    if find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ExecuTorch says that all of it is experimental
        imported = import_module(module)
    *owners, last = name.split(".")
    for owner in owners:
        imported = getattr(imported, owner)
    set_at_creation = last in getattr(getattr(imported, "__init__", None), "__code__", (lambda: 0).__code__).co_names
    assert hasattr(imported, last) or set_at_creation, f"{module}.{name} is gone, which is used as {why}: {remedy}"


def private_names_in(program: str) -> set[str]:
    """Names with an underscore in front that a program takes from torch, timm and torchvision."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        paths = []
        if isinstance(node, ast.ImportFrom) and node.module:
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            paths = [ast.unparse(node)]
        for path in paths:
            first, *rest = path.split(".")
            if path.replace(".", "").isidentifier() and first in ("torch", "timm", "torchvision", "nn", "F"):
                found |= {part for part in rest if part.startswith("_") and not part.startswith("__")}
        if isinstance(node, ast.Attribute):
            found |= {node.attr} & {"_parameters", "_buffers", "_modules", "_model_args", "_reset_state"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "private"):
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            parts = [part for text in texts for part in text.split(".")]
            found |= {part for part in parts if part.startswith("_") and not part.startswith("__")}
    return found


@pytest.mark.promise("clients", "Nothing private of torch, timm or torchvision is used but by a table that says why")
def test_no_other_private_name_is_used():
    assert private_names_in("from timm.models._features import x") == {"_features"}
    assert private_names_in("torch._sym_sqrt(2)\nmodel._model_args") == {"_sym_sqrt", "_model_args"}
    assert private_names_in('getattr(x, "_workers", [])\nprivate("torch._inductor", "y")') == {"_workers", "_inductor"}
    told = {part for module, name, *_ in NAMES for part in f"{module}.{name}".split(".")}
    programs = sorted(Path(metamixer.__file__).parent.rglob("*.py"))
    assert len(programs) > 100
    used = {str(path): private_names_in(path.read_text(encoding="utf-8")) for path in programs}
    assert {path: names - told for path, names in used.items() if names - told} == {}


def test_a_private_name_that_is_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for imported in (lambda _: SimpleNamespace(), lambda module: import_module("no_such_package")):
        monkeypatch.setattr(targets, "import_module", imported)
        with pytest.raises(
            MetamixerError, match=r"^the installed torch has no torch._inductor.aoti_load_package any more"
        ):
            private("torch._inductor", "aoti_load_package")
