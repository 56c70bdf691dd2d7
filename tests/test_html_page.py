"""Pages from templates: what goes in is text, whatever markup it holds, and nothing a template names is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from PIL import Image

from metamixer import html_page
from metamixer.bench.machine import Machine
from metamixer.bench.race.report import render_page as render_race
from metamixer.bench.race.speed import Speed
from metamixer.bench.race.standings import Cell, RaceResult, Standing
from metamixer.demo.page import render_page as render_demo
from metamixer.demo.photographs import PHOTOGRAPHS
from metamixer.demo.run import Answer, Demo, Guess, ModelResult
from metamixer.deploy.timing import Timing
from metamixer.html_page import render
from metamixer.tasks.gallery import Case, write_gallery

PICTURE = Image.new("RGB", (4, 3))
TIMING = Timing(2.0, 1.0, 3.0)
NUMBERS = ("max_abs_difference", "max_relative_difference", "top1_agreement", "merge_difference")
COUNTS = ("parameters_before", "parameters_after", "size_bytes", "count")
REPORT = SimpleNamespace(**dict.fromkeys(NUMBERS, 0.5), **dict.fromkeys(COUNTS, 3))  # what the page shows of an export
MARKUP = st.sampled_from(["<b>", "</section>", "<script>", "&amp;", '"', "'", "{{ 1 }}", "{% raw %}", "[/x]", "\udcff"])
NAMES = st.lists(MARKUP | st.text(st.characters(exclude_characters="\r\n\f"), max_size=5), max_size=4).map("".join)


class Parsed(HTMLParser):
    """A page's elements with the names of their attributes, and the texts that a reader is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_text()
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.texts += [value for name, value in attrs if name in ("alt", "title") and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        self._end_text()
        self.elements.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.text += data

    def _end_text(self) -> None:
        self.texts.append(self.text)
        self.text = ""


def shown(name: str) -> str:
    """How a page shows it: a lone surrogate, which no file can hold, as its escape."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def gallery(name: str) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        write_gallery(path, [Case(name, 0.5, PICTURE, PICTURE)], f"set {name}", f"metric {name}", 1, 1)
        return path.read_text(encoding="utf-8")


def race(name: str) -> str:
    speed = Speed(
        **dict.fromkeys(("parameters", "merged_parameters", "macs", "training_memory", "images_per_second"), 1),
        ffn_expansion=2.5,
        torch=TIMING,
        onnx=None,
        onnx_missing=f"no {name}",
    )
    result = RaceResult(
        settings={"model": name, "data": "pictures", "epochs": 1, "same_parameters": None, "policy": name},
        pictures={"classes": 2, "training": 8, "validation": 4},
        machine=Machine(name, 1, "system", {name: "1"}),
        threads=1,
        cells=(Cell(name, 0, 50.0, 60.0, 10.0, [{"train_loss": 1.0, "top1": 50.0}]),),
        standings=(Standing(name, 1, 50.0, None, 0.0, None, speed),),
    )
    return render_race(result, b"", b"")


def demo(name: str) -> str:
    photograph = replace(PHOTOGRAPHS[0], caption=f"a {name}", credit=name)
    model = ModelResult(
        name=name,
        classes=1,
        image_size=32,
        accuracy=None,
        macs=1,
        export=REPORT,
        torch=TIMING,
        onnx=TIMING,
        answers=(Answer((Guess(name, 0.5, True),), "right"),),
    )
    found = Demo((photograph,), (model,), Machine(name, 1, "system", {name: "1"}), date(2026, 1, 1))
    return render_demo(found, [PICTURE], [PICTURE])


PAGES = {"gallery": gallery, "race": race, "demo": demo}


@pytest.mark.promise("bad input", "on every page a name with markup, quotes or lone surrogates stays text")
@pytest.mark.parametrize("page", PAGES)
@settings(max_examples=25, deadline=None)
@given(name=NAMES)
def test_names_stay_text(page: str, name: str) -> None:
    """The elements are those of a plain name's page, and the name is read as it is."""
    plain, found = Parsed(PAGES[page]("plain")), Parsed(PAGES[page](f"a{name}"))
    assert found.elements == plain.elements
    assert found.texts == [text.replace("plain", shown(f"a{name}")) for text in plain.texts]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_stands_alone(page: str) -> None:
    """Nothing is fetched and nothing runs."""
    found = Parsed(PAGES[page]("plain"))
    assert {"/html", "/style", "/main", "h1"} <= {element for element, *_ in found.elements}
    assert not {"script", "link", "iframe", "a"} & {element for element, *_ in found.elements}
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert not re.search(r"https?://|url\(|@import", PAGES[page]("plain"))


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("templates/gallery.html", metric="mIoU", count=0, parts=())


def test_every_template_belongs_to_a_page() -> None:
    folder = Path(html_page.__file__).parent / "templates"
    source = "".join(path.read_text() for path in (*folder.rglob("*.html"), *folder.parent.rglob("*.py")))
    assert [path.name for path in folder.iterdir() if f'"templates/{path.name}"' not in source] == []


def test_the_script_that_keeps_the_web_page_takes_any_name() -> None:
    """Values are JSON there, in which no character ends a string."""
    names = ["</script>", "\"'\\", "\u2028", "a.json"]
    script = render("deploy/web_page/offline.js", kept="a", at_once=names)
    found = re.search(r'const KEPT = "a", AT_ONCE = (\[.*\]);', script)
    assert found is not None
    assert json.loads(found[1]) == names
