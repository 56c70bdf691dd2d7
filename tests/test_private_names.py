"""Names that the packages we stand on do not promise to keep: one row each, and a clear sentence when one goes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from metamixer.deploy import targets
from metamixer.deploy.targets import private
from metamixer.errors import MetamixerError

# module, name, what it is used for, what to do when it is gone
NAMES = [
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
]


@pytest.mark.promise("tests", "a private name of another package that goes is told by a test, with what to do then")
@pytest.mark.parametrize(("module", "name", "why", "remedy"), NAMES, ids=[f"{row[0]}.{row[1]}" for row in NAMES])
def test_private_name_is_there(module: str, name: str, why: str, remedy: str) -> None:
    if find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    assert hasattr(import_module(module), name), f"{module}.{name} is gone, which is used as {why}: {remedy}"


def test_a_private_name_that_is_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for imported in (lambda _: SimpleNamespace(), lambda module: import_module("no_such_package")):
        monkeypatch.setattr(targets, "import_module", imported)
        with pytest.raises(
            MetamixerError, match=r"^the installed torch has no torch._inductor.aoti_load_package any more"
        ):
            private("torch._inductor", "aoti_load_package")
