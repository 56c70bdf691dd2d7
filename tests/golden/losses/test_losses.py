"""Our training losses and their gradients are those of the frameworks that the released networks were trained with."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

checks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("checks.py"))))


@pytest.mark.promise(
    "losses", "losses, targets, samples and gradients of nine heads in 39 cases are the frameworks' own"
)
@pytest.mark.parametrize(("name", "case"), checks.CASES)
def test_a_case_agrees_with_the_framework(name: str, case: str) -> None:
    checks.check(name, case)


def test_all_cases_are_there() -> None:
    assert len(checks.CASES) == 39
