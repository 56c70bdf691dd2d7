"""What all networks of a race learn: classification, on the first pictures of every class if time is short."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from PIL import Image
from tyro.conf import Suppress, arg

from metamixer.data.source import Pictures, Split
from metamixer.limits import Count
from metamixer.tasks.classification import Classification


@dataclass
class RaceTask(Classification):
    """Classification with fewer pictures, the same ones for every network.

    Args:
        model: a network that takes any mixer.
        pictures: training pictures per class, the first of each; all by default.
        val_pictures: validation pictures per class, the first of each; all by default.
    """

    model: Annotated[str, arg(name="backbone")] = "metaformer_nano"
    # Those of one network would not fit the next.
    pretrained: Suppress[bool] = False
    checkpoint: Suppress[str | None] = None
    pictures: Count | None = None
    val_pictures: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # which looks at these fields too

    def open_split(self, split: Split, classes: Sequence[str] | None = None) -> Pictures:
        whole = super().open_split(split, classes)
        count = self.pictures if split == "train" else self.val_pictures
        return whole if count is None else FirstOfEachClass(whole, count)


class FirstOfEachClass(Pictures):
    """The first ``count`` pictures of every class of ``whole``, in its order; a smaller class has fewer."""

    def __init__(self, whole: Pictures, count: int) -> None:
        self.whole = whole
        self.classes = whole.classes
        self.test_part = whole.test_part
        self.indices = array("q")
        seen: Counter[int] = Counter()
        for index, label in enumerate(map(int, whole.labels)):
            seen[label] += 1
            if seen[label] <= count:
                self.indices.append(index)
        self.labels = array("i", (int(whole.labels[index]) for index in self.indices))
        if whole.skips:
            self.skip_unreadable()

    def read(self, index: int) -> Image.Image:
        return self.whole.read(self.indices[index])

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])
