"""Names in one block: what went in comes out, and a large set's list stays small."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer.data import image_folder
from metamixer.data.image_folder import ImageFolder
from metamixer.data.packed import PackedNames

TEXTS = st.lists(st.text(st.characters(exclude_categories=())))  # lone surrogates too


@given(TEXTS)
def test_names_come_out_as_they_went_in(texts: list[str]) -> None:
    names = PackedNames(texts)
    assert list(names) == texts
    assert list(pickle.loads(pickle.dumps(names))) == texts
    assert [names[i - len(texts)] for i in range(len(texts))] == texts
    with pytest.raises(IndexError):
        names[len(texts)]


def test_the_list_of_a_large_set_takes_no_objects_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names such as ImageNet's, of which there are 1.28 million; no file exists."""
    classes, each = 100, 200
    folders = [f"n{i:08}" for i in range(classes)]

    def files(folder: Path) -> list[Path]:
        return [Path(f"{folder}/{folder.name}_{i:05}.JPEG") for i in range(each)]

    monkeypatch.setattr(image_folder, "class_folders", lambda root: folders)
    monkeypatch.setattr(image_folder, "pictures_below", files)
    ImageFolder("/data/imagenet/train")  # Python's own table of names grows once
    tracemalloc.start()
    try:
        pictures = ImageFolder("/data/imagenet/train")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pictures) == classes * each
    assert pictures.name(each) == "/data/imagenet/train/n00000001/n00000001_00000.JPEG"
    assert pictures.labels[each] == 1
    # 30 bytes of name, 8 of its end, 4 of its class, and the room that growing blocks keep: 57 MB for all of ImageNet,
    # where pairs of path and class took 523.
    assert kept / len(pictures) < 100
