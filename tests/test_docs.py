"""The documentation's links, names and commands exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import metamixer as mm
from metamixer.bench.race import RaceTask, race
from metamixer.cli import VERBS
from metamixer.tasks.classification import Classification
from metamixer.train.recipes import get_recipe, list_recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), target


@each_page
def test_python_names_exist(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metamixer"):
                module = import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mm":
                assert hasattr(mm, node.attr), f"mm.{node.attr}"


def commands(path: Path) -> list[list[str]]:
    """The words of every ``metamixer …`` in the page's shell blocks; columns of a table of commands are apart."""
    text = "\n".join(blocks(path, "", "bash", "sh")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in re.split(r" {3,}(?=metamixer)", line)]
    found = [line[line.index("metamixer ") :] for line in lines if re.search(r"(^|--no-python )metamixer ", line)]
    return [shlex.split(line, comments=True)[1:] for line in found]


def flags_of(verb: str, first: str) -> set[str]:
    if verb == "train":
        config = get_recipe(first) if first in list_recipes() else mm.TrainConfig(Classification(first))
        names = {field.name for part in (config, config.task) for field in fields(part)} | {"dry_run"}
    elif verb == "race":
        names = {field.name for part in (mm.TrainConfig, RaceTask) for field in fields(part)}
        names |= {*inspect.signature(race).parameters, "backbone"}
    else:
        function = getattr(import_module(VERBS[verb].module), VERBS[verb].function)
        names = set(inspect.signature(function).parameters)
    return {"--" + name.replace("_", "-") for name in names} | {"--help"}


@each_page
def test_commands_exist(page: Path) -> None:
    for verb, *words in commands(page):
        assert verb in VERBS, verb
        if verb == "train" and not words[0].isupper() and words[0] != "--help":
            assert words[0] in list_recipes() or mm.list_models(words[0]), words[0]
        known = flags_of(verb, words[0] if words else "")
        for word in words:
            if word.startswith("--"):
                assert word.replace("--no-", "--", 1) in known or word in known, f"metamixer {verb} {word}"


def test_the_pages_hold_commands() -> None:
    assert sum(len(commands(path)) for path in PAGES) > 30


def promises_in_tests() -> set[tuple[str, str]]:
    """What the tests' ``promise`` marks say."""
    found = set()
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                group, sentence = (ast.literal_eval(argument) for argument in node.args)
                found.add((group, sentence))
    return found


def test_the_page_of_promises_is_that_of_the_tests() -> None:
    """Where it is not: ``python benchmarks/reliability.py`` makes it anew."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| \d+(?: \*\*\d+ failed\*\*)? \|", page, re.MULTILINE)
    written = {row.replace("\\|", "|") for row in rows}
    assert written == {sentence for _, sentence in promises_in_tests()}
    assert not re.search(r"\*\*\d+ failed\*\*", page)
