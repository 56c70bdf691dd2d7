"""The one place that prints: names of files and classes come out as they are, whatever they hold.

Nothing is taken for markup. What a terminal would act on instead of showing it is written as an escape, ``\\x1b`` for
one, and so are halves of surrogate pairs, by which Python keeps names that are no UTF-8. Lines are not broken, so that
a printed path is one that can be pasted; and what a stream's encoding has not got is escaped too.

rich is imported when the first table or bar is shown, as ``metamixer --help`` needs none.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_Item = TypeVar("_Item")
_ACTED_ON = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, separators of lines
_DIRECTIONS = {*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # these turn what follows round
_WIDE = 10_000  # columns of what is no terminal


def shown(value: object) -> str:
    """Text on one line, of which all can be seen."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def as_utf8(text: str) -> str:
    """Text that UTF-8 can hold, for files: halves of surrogate pairs are escaped, all else stays."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _visible(character: str) -> str:
    acted_on = unicodedata.category(character) in _ACTED_ON or ord(character) in _DIRECTIONS
    return character.encode("unicode_escape").decode("ascii") if acted_on else character


# --- Lines -----------------------------------------------------------------------------------------------------------


def say(text: object = "") -> None:
    """A line of what was asked for, on standard output."""
    print(shown(text), file=_stream("stdout"), flush=True)


def say_lines(text: str) -> None:
    """Text of several lines on standard output."""
    for line in text.splitlines():
        say(line)


def note(text: object) -> None:
    """A line beside what was asked for, on standard error."""
    print(shown(text), file=_stream("stderr"), flush=True)


def complain(sentence: object) -> None:
    """What went wrong, in one sentence, on standard error."""
    note(f"metamixer: {sentence}")


def _stream(name: str) -> TextIO:
    stream: TextIO = getattr(sys, name)
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return stream


class _Visible(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), ()
        return True


notices = logging.getLogger("metamixer")
"""What the library notices while it works; the log's handlers decide where that goes."""
if not any(isinstance(known, _Visible) for known in notices.filters):
    notices.addFilter(_Visible())


# --- Tables ----------------------------------------------------------------------------------------------------------


class Table:
    """A table for the terminal; cells are text.

    Args:
        headings: of the columns.
        left: those of the columns that are aligned at the left, beside the first; numbers stand at the right.
        title: a line above.
        caption: a line below.
        dense: without lines at the sides, and with numbers that are never broken, for tables of many columns.
        header: show the headings.
    """

    def __init__(
        self,
        headings: Sequence[object],
        left: Collection[str] = (),
        title: object = "",
        caption: str = "",
        dense: bool = False,
        header: bool = True,
    ) -> None:
        self.headings = [shown(heading) for heading in headings]
        self.left = {self.headings[0], *left}
        self.title, self.caption, self.dense, self.header = shown(title), shown(caption), dense, header
        self.rows: list[tuple[list[str], bool]] = []

    def add(self, *cells: object, bold: bool = False) -> None:
        """A row of as many cells as there are headings."""
        self.rows.append(([shown(cell) for cell in cells], bold))

    def show(self) -> None:
        """Print it on standard output."""
        console = _console("stdout")
        if self.title:
            console.print(_text(self.title, "bold"), soft_wrap=True)
        console.print(self)

    def __rich__(self) -> RichTable:
        from rich.box import HEAVY_HEAD, SIMPLE_HEAD
        from rich.table import Table as RichTable

        dense = self.dense
        table = RichTable(
            box=SIMPLE_HEAD if dense else HEAVY_HEAD,
            show_edge=not dense,
            pad_edge=not dense,
            collapse_padding=dense,
            show_header=self.header,
            caption=_text(self.caption, "dim") if self.caption else None,
            caption_justify="left",
        )
        for heading in self.headings:
            at_left = heading in self.left
            table.add_column(
                _text(heading),
                justify="left" if at_left else "right",
                overflow="fold",
                min_width=1,  # a name of characters without width would be left out
                no_wrap=dense and not at_left,
            )
        for cells, bold in self.rows:
            table.add_row(*map(_text, cells), style="bold" if bold else None)
        return table


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style)


def _console(name: str) -> Console:
    from rich.console import Console

    stream = _stream(name)
    wide = None if stream.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(file=stream, width=wide, markup=False, highlight=False, emoji=False)


# --- Work under way --------------------------------------------------------------------------------------------------


@contextmanager
def working(what: object) -> Iterator[None]:
    """``what`` beside a sign of life while the block runs, where a person looks on."""
    if not sys.stdout.isatty():
        yield
        return
    with _console("stdout").status(_text(shown(what))):
        yield


def progress(items: Iterable[_Item], what: object, total: int | None = None) -> Iterator[_Item]:
    """The items, and how far they have come, where a person looks on."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(what, total) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done)


class Bar:
    """A progress bar on standard error, where a person looks on; it is taken away when the block ends.

    Args:
        what: stands before it.
        total: what makes it full; None where that is not known.
        done: what is done before it begins.
        active: False for no bar at all.
        stays: leave it where it is when the block ends.
        stream: "stdout" where what is printed meanwhile (:meth:`say`) goes there.
    """

    def __init__(
        self,
        what: object = "",
        total: int | None = None,
        done: int = 0,
        active: bool = True,
        stays: bool = False,
        stream: str = "stderr",
    ) -> None:
        self._bar: Any = None
        if active and getattr(sys, stream).isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[beside]}", markup=False),
                TimeRemainingColumn(),
            )
            # What is printed goes above the bar, if it goes to the same place.
            redirected = {f"redirect_{name}": getattr(sys, name).isatty() for name in ("stdout", "stderr")}
            self._bar = Progress(*columns, console=_console(stream), transient=not stays, **redirected)
            self._task = self._bar.add_task(shown(what), total=total, completed=done, beside="")

    def update(self, done: int, what: object | None = None, beside: object = "") -> None:
        """How far it is; ``beside`` stands behind the bar."""
        if self._bar is not None:
            description = {} if what is None else {"description": shown(what)}
            self._bar.update(self._task, completed=done, beside=shown(beside), **description)

    def say(self, text: object) -> None:
        """A line above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(_text(shown(text)), soft_wrap=True)

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
