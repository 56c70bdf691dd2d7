"""Many names in one block of memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class PackedNames:
    """Texts by index, at their length in UTF-8 and eight bytes each.

    A million strings of Python take several times as much; and processes that read samples would each get a copy, as
    looking at an object of Python writes into it. Lone surrogates, as names of files may have, are kept.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """Raises IndexError beyond the last."""
        place = range(len(self))[index]
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")
