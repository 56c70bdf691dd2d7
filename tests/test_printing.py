"""Names come out as they are: no markup, no escape sequence acts, nothing is cut, and one module prints."""

from __future__ import annotations

import ast
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import metamixer
from metamixer import printing
from metamixer.printing import Bar, Table, as_utf8, complain, notices, progress, say, shown

SOURCES = Path(metamixer.__file__).parent
NAMES = [
    "[/x]",
    "[b]x",
    "[link=http://x]y[/]",
    "a:smile:b",
    "\ud800",
    "\udcff.png",
    "a\nb",
    "a\r\x1b[2J\x1b]0;title\x07b",
    "\u202egpj.exe",
    "日本 語.png",
    "x" * 300,
    "a b" * 100,
]
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=40), st.text("[]/=\\\n\x1b\ud800ab ", max_size=20))


@given(names)
def test_shown_text_is_one_visible_line_and_plain_text_is_itself(name: str) -> None:
    text = shown(name)
    assert len(text.splitlines()) <= 1
    assert not any(character in text for character in "\x1b\r\n\t\x07\x9b")
    text.encode("utf-8")
    as_utf8(name).encode("utf-8")
    if name.isprintable() and not any(0xD800 <= ord(character) < 0xE000 for character in name):
        assert text == as_utf8(name) == name


def test_different_names_stay_different_and_say_what_they_are() -> None:
    assert shown("a\nb\x1b[1m\udcff\u202e") == r"a\nb\x1b[1m\udcff\u202e"
    assert as_utf8("a\n\udcff") == "a\n\\udcff"


def _in_title(name: str) -> None:
    table = Table(("class", "score"), title=name, header=False)
    table.add("a", "1")
    table.show()


def _in_heading(name: str) -> None:
    Table(("metric", name)).show()


def _in_cell(name: str) -> None:
    table = Table(("name", "MB"), left=("MB",), caption="what it is")
    table.add(name, name, bold=True)
    table.show()


def _in_dense_cell(name: str) -> None:
    table = Table(("name", "MB"), dense=True)
    table.add("a", name)
    table.show()


WAYS: dict[str, Callable[[str], None]] = {
    "line": say,
    "title": _in_title,
    "heading": _in_heading,
    "cell": _in_cell,
    "dense cell": _in_dense_cell,
}


@pytest.mark.promise("bad input", "names of files and classes are printed as they are, whatever markup they hold")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@settings(max_examples=40, deadline=None)
@given(name=names)
@example(name="\U000e0000")
@example(name="\u200d")
@example(name="\xa0")
def test_any_name_is_printed_whole(way: str, encoding: str, name: str) -> None:
    said = _printed(lambda: WAYS[way](name), encoding)
    expected = shown(name).encode(encoding, "backslashreplace").decode(encoding)
    assert expected.strip() in said or not name.strip()  # spaces of other kinds are spaces to tables
    assert "\x1b" not in said


def _printed(do: Callable[[], None], encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        patch.delenv("COLUMNS", raising=False)
        do()
        stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("name", NAMES)
def test_sentences_and_notices(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert _printed(lambda: complain(f"{name}: no such file")) == f"metamixer: {shown(name)}: no such file\n"
    with caplog.at_level(logging.INFO, "metamixer"):
        notices.info("%s holds %d", name, 3)
    assert caplog.messages == [f"{shown(name)} holds 3"]


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["[/x]", "[b]x", "\ud800", "a\x1b[2J"])
def test_what_people_look_at_while_they_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress([1, 2], name)) == [1, 2]
    with Bar(name, 3, stream="stdout") as bar:
        bar.update(1, name, name)
        bar.say(f"line {name}")
    with printing.working(name):
        pass
    assert shown(name) in screen.getvalue()
    assert f"line {shown(name)}" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_nothing_is_shown_where_nobody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("ab"), "reading", 2)) == ["a", "b"]
    with Bar("x", 3) as bar, printing.working("working"):
        bar.update(1)
    assert capsys.readouterr() == ("", "")


def test_one_module_prints() -> None:
    """Others hand it text: no print, no writing to the standard streams, no rich."""
    found = []
    for file in SOURCES.rglob("*.py"):
        if file.name == "printing.py":
            continue
        found += [f"{file.relative_to(SOURCES)}:{line}: {what}" for line, what in _ways_to_print(file.read_text())]
    assert found == []


def _ways_to_print(source: str) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append((node.lineno, "print"))
        if isinstance(node, ast.Attribute) and node.attr in ("write", "writelines") and _is_stream(node.value):
            found.append((node.lineno, "a stream"))
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        found += [(node.lineno, module) for module in modules if module.split(".")[0] == "rich"]
    return found


def _is_stream(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")


def test_the_search_for_other_ways_finds_them() -> None:
    for source in ("print(1)", "import rich", "from rich.table import Table", "sys.stderr.write('a')"):
        assert len(_ways_to_print(f"import sys\n{source}\n")) == 1
