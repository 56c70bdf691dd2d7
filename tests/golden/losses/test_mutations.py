"""The reference cases can fail: each wrong loss is found by one of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import metamixer.heads.retinanet

HERE = Path(__file__).parent
checks = SimpleNamespace(**runpy.run_path(str(HERE / "checks.py")))
mutations = SimpleNamespace(**runpy.run_path(str(HERE / "mutated.py")))


@pytest.mark.promise(
    "mutations", "a wrong weight, divisor, target or sample of a training loss fails its reference case"
)
@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda one: f"{one.what}, {one.head}")
def test_a_wrong_loss_is_found(mutation: Any) -> None:
    with mutations.mutated(mutation), pytest.raises(AssertionError):
        checks.check(mutation.head, mutation.case)


def test_the_sources_are_themselves_afterwards() -> None:
    before = metamixer.heads.retinanet.RetinaNet
    with mutations.mutated(mutations.MUTATIONS[0]):
        assert sys.modules["metamixer.heads.retinanet"].RetinaNet is not before
    assert metamixer.heads.retinanet.RetinaNet is before
    checks.check("retinanet", "even")
