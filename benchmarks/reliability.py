"""What is promised, and does it hold here? Runs the tests marked ``promise`` and writes ``docs/reliability.md``.

    python benchmarks/reliability.py                       # all, the slow ones too
    python benchmarks/reliability.py tests/train -k resume # some, to look; the page is left alone

A promise is a test's mark: ``@pytest.mark.promise(group, sentence)``. The page counts the cases behind each sentence:
those that passed, and those that were skipped for want of what they need. A promise that fails is written as such.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ABOVE = "<!-- from here on made by benchmarks/reliability.py -->"
GROUPS = {
    "bad input": "Bad input",
    "faults": "Faults of the machine",
    "kills": "Kills",
    "processes": "Several processes",
    "losses": "Losses equal to the frameworks'",
    "mutations": "Faults put in on purpose",
    "compile": "torch.compile",
    "clients": "Other libraries as clients",
    "exports": "Exports",
    "tests": "The tests themselves",
}
Promise = tuple[str, str]


class Outcomes:
    """A pytest plugin that counts outcomes by promise (``tests/conftest.py`` writes each into its tests' reports)."""

    def __init__(self) -> None:
        self.counts: dict[Promise, Counter[str]] = defaultdict(Counter)
        self.files: dict[Promise, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:  # a set-up or tear-down that went well says nothing
            return
        for promise in [(group, sentence) for name, (group, sentence) in report.user_properties if name == "promise"]:
            self.counts[promise][report.outcome] += 1
            self.files[promise].add(report.nodeid.partition("::")[0])


def page(outcomes: Outcomes) -> str:
    """The page: what people wrote above the line that says so, then a table for each group."""
    from metamixer.bench.machine import this_machine  # not before pytest, which warns of what it finds imported

    written, above, _ = PAGE.read_text().partition(ABOVE)
    lines = [written + above, ""]
    for group, title in GROUPS.items():
        rows = sorted(promise for promise in outcomes.counts if promise[0] == group)
        if not rows:
            continue
        lines += [f"## {title}", "| what holds | passed | skipped | tests |", "|---|---|---|---|"]
        for promise in rows:
            count = outcomes.counts[promise]
            files = ", ".join(f"`{file.removeprefix('tests/')}`" for file in sorted(outcomes.files[promise]))
            failed = f" **{count['failed']} failed**" if count["failed"] else ""
            sentence = promise[1].replace("|", "\\|")
            lines.append(f"| {sentence} | {count['passed']}{failed} | {count['skipped'] or ''} | {files} |")
        lines.append("")
    lines += [f"Made by `python benchmarks/reliability.py` on {this_machine()}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run the tests; write the page where all of them ran."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of two processes on two cores
    outcomes = Outcomes()
    shared = ["--numprocesses", "2", "--dist", "loadfile"]
    code = pytest.main(["-q", "-m", "promise", *shared, *(arguments or [str(ROOT / "tests")])], plugins=[outcomes])
    if not arguments:
        PAGE.write_text(page(outcomes))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
