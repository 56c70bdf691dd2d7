"""Small files that mean a lot: refused by bounds, in one sentence, before time or memory is spent on them."""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamixer import limits
from metamixer.data.annotations import find_problems, open_class_maps, open_objects
from metamixer.data.annotations.shapes import fault_of_mask
from metamixer.data.archives import read_archive
from metamixer.data.clouds import CloudAugmentation, Scenes, elastic_distortion
from metamixer.data.formats import parse_json, read_json, read_xml, read_yaml
from metamixer.data.pictures import opened_picture, pictures_below, read_picture
from metamixer.data.shards import expand_ranges, number_classes
from metamixer.data.source import open_pictures
from metamixer.data.time_series import read_series
from metamixer.errors import MetamixerError

DIGITS = "9" * 5000


@contextmanager
def refused(message: str, seconds: float = 5, megabytes: int = 300) -> Iterator[None]:
    """One sentence, soon, and without much memory: Python's and NumPy's by every block, that of C libraries where the
    process never had more."""
    kib = 1024 if sys.platform == "darwin" else 1
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(MetamixerError, match=message) as raised:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert time.process_time() - began < seconds
    assert peak < megabytes * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024 * kib


def png(path: Path, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


# --- Texts with structure --------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.promise("bad input", "a few bytes that stand for gigabytes in YAML, XML, JSON or CSV are refused")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}names: *a11\n", "aliases"),
        ("names: " + "[" * 50_000, "nested more than 100 levels"),
        ("names: " + "{a: " * 5000, "nested more than 100 levels"),
        ("names: [a\n", "cannot be read as YAML"),
        ("names:\n" + " - a\n" * 300_000, "too large"),
    ],
    ids=["aliases", "lists", "mappings", "broken", "long"],
)
def test_yaml(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with refused(message):
        read_yaml(file)
    png(tmp_path / "images" / "train" / "a.png")
    with refused(message):
        open_objects(tmp_path)


def test_yaml_of_numbers_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Whole numbers of any length, sixties and dates are text, as nothing here needs them as numbers."""
    file = tmp_path / "data.yaml"
    file.write_text(f"nc: {DIGITS}\nnames: {{0: yes, 1: 2024-01-01}}\nd: {'1:' * 5000}1.5\n")
    assert read_yaml(file) == {"nc": DIGITS, "names": {"0": "yes", "1": "2024-01-01"}, "d": "1:" * 5000 + "1.5"}


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
@pytest.mark.parametrize("depth", [1500, 100_000])
def test_deep_json(opening: str, depth: int, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(opening * depth)
    with refused("cannot be read as JSON"):
        read_json(file)


def test_json_with_too_many_digits_and_no_utf8(tmp_path: Path) -> None:
    with refused("a.json cannot be read as JSON"):
        parse_json(f'{{"id": {DIGITS}}}', "a.json")
    (tmp_path / "a.json").write_bytes(b'"\xe4"')
    with refused("cannot be read as JSON"):
        read_json(tmp_path / "a.json")


ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'<!DOCTYPE a [<!ENTITY a0 "ha">{ENTITIES}]><annotation>&a11;</annotation>', "definitions of entities"),
        (
            '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
            "definitions of entities",
        ),
        ("<annotation>&a;</annotation>", "cannot be read as XML"),
        ("<a>" * 100_000, "nested more than 100 levels"),
        ("<a>", "cannot be read as XML"),
        ("", "cannot be read as XML"),
    ],
    ids=["entities", "outside", "undefined", "deep", "open", "empty"],
)
def test_xml(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(text)
    with refused(message):
        read_xml(file)


@given(text=st.text(max_size=30), tag=st.sampled_from(["name", "size", "object"]))
def test_xml_is_read_as_pythons_own_reader_does(text: str, tag: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from xml.etree import ElementTree

    root = ElementTree.Element("annotation", {"a": "b"})
    ElementTree.SubElement(root, tag).text = text
    ElementTree.SubElement(root, tag).tail = "x"
    file = tmp_path_factory.mktemp("xml") / "a.xml"
    written = ElementTree.tostring(root, encoding="utf-8")
    file.write_bytes(written)
    try:
        expected = ElementTree.tostring(ElementTree.fromstring(written))
    except ElementTree.ParseError:  # characters that XML does not know
        with pytest.raises(MetamixerError):
            read_xml(file)
        return
    assert ElementTree.tostring(read_xml(file)) == expected


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
@pytest.mark.parametrize(
    ("begin", "piece", "message"),
    [
        ("date,a\n", "1", "a line of more than 1048576 characters|field larger"),
        ("date,a\n", '"', "a line of more than|field larger|cannot be read"),
        ("date,a\n", "1,", "a line of more than"),
        ("", "a,", "a line of more than"),
    ],
    ids=["endless cell", "endless quotes", "endless cells", "endless header"],
)
def test_tables(begin: str, piece: str, message: str, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    text = (begin + piece * (40_000_000 // len(piece))).encode()
    file.write_bytes(gzip.compress(text, 1) if ending == "csv.gz" else text)
    with refused(message):
        read_series(file)


def test_a_table_whose_header_promises_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows and columns would be terabytes, long before a row is seen to be too short."""
    monkeypatch.setattr(limits, "available_memory", lambda: 4_000_000)
    header = ",".join(["date", *map(str, range(1000))])
    (tmp_path / "a.csv").write_text(f"{header}\n" + "2020-01-01\n" * 1000)
    with refused("too little memory .* 1000 rows of 1000 numbers"):
        read_series(tmp_path / "a.csv")


# --- Annotations -----------------------------------------------------------------------------------------------------


def coco(root: Path, **changes: object) -> Path:
    png(root / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "bolt"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25}],
    }
    (root / "instances_train.json").write_text(json.dumps({**content, **changes}))
    return root


@pytest.mark.parametrize(
    "changed",
    [
        {"bbox": [10**300, 1, 1, 1]},
        {"bbox": [10**4000, 1, 1, 1]},
        {"area": 10**4000},
        {"iscrowd": "9" * 4000},
        {"segmentation": [[10**4000] * 6]},
        {"segmentation": {"size": [20, 20], "counts": "o" * 1_000_000}},
        {"segmentation": {"size": [20, 20], "counts": [10**18]}},
        {"segmentation": {"size": [10**9, 10**9], "counts": "abc"}},
        {"id": 10**4000},
        {"image_id": 10**4000},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_coco_entries_of_any_size(changed: dict[str, object], tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25}
    began = time.process_time()
    problems = find_problems(coco(tmp_path, annotations=[{**entry, **changed}]))
    assert time.process_time() - began < 3
    assert problems


def test_run_lengths_end(tmp_path: Path) -> None:
    began = time.process_time()
    assert fault_of_mask({"size": [20, 20], "counts": "o" * 3_000_000}, (20, 20)) is not None
    assert time.process_time() - began < 3


def test_coco_of_many_categories_takes_no_square_of_their_number(tmp_path: Path) -> None:
    categories = [{"id": i, "name": f"class {i}"} for i in range(30_000)]
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 20} for i in range(5)]
    entry = {"image_id": 0, "category_id": 29_999, "bbox": [1, 1, 5, 5]}
    for i in range(5):
        png(tmp_path / f"{i}.png")
    began = time.process_time()
    found = open_objects(coco(tmp_path, categories=categories, images=images, annotations=[entry]))
    assert time.process_time() - began < 5
    assert found.pictures[0].instances[0].label == 29_999


@pytest.mark.parametrize(
    "line", [f"{DIGITS} .5 .5 .5 .5", f"0 {DIGITS} .5 .5 .5", "0 1e999 nan .5 .5", "0 " + ".5 " * 10**6]
)
def test_yolo_lines(line: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        png(tmp_path / "images" / split / "a.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(line)
    (tmp_path / "data.yaml").write_text("names: [a, b]\ntrain: images/train\nval: images/val\n")
    assert any("a.txt" in str(problem) for problem in find_problems(tmp_path))


@pytest.mark.promise("bad input", "lists and class names that are no UTF-8 are one sentence that names the file")
@pytest.mark.parametrize("name", ["classes.txt", "class_dict.csv", "objectInfo150.txt"])
def test_class_names_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        png(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "labels").mkdir(parents=True)
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(tmp_path / split / "labels" / "a.png")
    (tmp_path / name).write_bytes("Bäume,1,2,3\n".encode("latin-1"))
    with refused(f"{name} cannot be read as class names .byte 1 is no UTF-8 text"):
        open_class_maps(tmp_path)
    (tmp_path / name).write_text(f"a,{DIGITS},2,3\nb,1,1,{DIGITS}\n")
    if name == "class_dict.csv":
        with refused("class_dict.csv"):
            open_class_maps(tmp_path)


def test_lists_that_are_no_utf8(tmp_path: Path) -> None:
    voc = tmp_path / "voc"
    png(voc / "JPEGImages" / "a.png")
    (voc / "SegmentationClass").mkdir()
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xff\n")
    with refused(r"train.txt cannot be read as a list of pictures .byte 0 is no UTF-8"):
        open_class_maps(voc)
    yolo = tmp_path / "yolo"
    png(yolo / "images" / "a.png")
    (yolo / "data.yaml").write_text("names: [a]\ntrain: list.txt\n")
    (yolo / "list.txt").write_bytes(b"images/\xff.png\n")
    with refused(r"list.txt cannot be read as a list of pictures .byte 7 is no UTF-8"):
        open_objects(yolo)


# --- Shards and archives ---------------------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def sample(label: bytes, kind: str = "cls") -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return {"a.png": file.getvalue(), f"a.{kind}": label}


@pytest.mark.promise("bad input", "class numbers of billions and ranges of a billion shards are refused")
@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (b"9999999999", "cls", "holds class 9999999999; 1000000 classes are the most"),
        (b"9" * 5000, "cls", "holds class 99999"),
        (b'{"label": 3000000000}', "json", "holds class 3000000000"),
        (b'{"label": "3000000000"}', "json", "holds class 3000000000"),
        (b'{"label": ' + b"9" * 5000 + b"}", "json", "cannot be read as JSON"),
        (b"[" * 100_000, "json", "nested too deeply"),
        (b"0" * 20_000_000, "cls", "is too large"),
    ],
    ids=["billions", "digits", "json", "json text", "json digits", "json depth", "long"],
)
def test_labels_of_shards(label: bytes, kind: str, message: str, tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", sample(label, kind))
    with refused(message):
        open_pictures(file)


def test_class_numbers_of_other_sources() -> None:
    with refused("holds class 4000000000"):
        number_classes([0, 4_000_000_000], None, "the set")
    assert list(number_classes([], None, "the set")[1]) == []


@pytest.mark.parametrize(
    "pattern", ["a-{0..999999999}.tar", "{0..99999}{0..99999}", f"{{0..{DIGITS}}}", f"{{{DIGITS}..1}}"]
)
def test_ranges_of_shards(pattern: str) -> None:
    with refused("stands for more than 100000 shards"):
        expand_ranges(pattern)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=2), st.integers(1, 3))
def test_ranges_within_the_bound_are_all_their_pairs(ranges: list[tuple[int, int]], width: int) -> None:
    pattern = "x".join(["a", *(f"{{{first:0{width}d}..{last}}}" for first, last in ranges)])
    expected = ["a"]
    for first, last in ranges:
        expected = [f"{name}x{i:0{len(f'{first:0{width}d}')}d}" for name in expected for i in range(first, last + 1)]
    assert expand_ranges(pattern) == expected


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    """A tar file whose first member is a PAX header with these records."""
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(records), kind
    header = info.tobuf(tarfile.USTAR_FORMAT)
    padded = records + bytes(-len(records) % 512)
    return header + padded + tarfile.TarInfo("a.png").tobuf() + bytes(1024)


@pytest.mark.parametrize(
    "records",
    [
        b"garbage",
        b"0 path=x\n",
        b"99999999999999999999 path=x\n",
        b"9" * 5000 + b" path=x\n",
        b"30 size=-512\n" + b"x" * 17,
        b"27 size=99999999999999999\n",
        b"20 GNU.sparse.size=x\n",
        b"30 path=\xff\xfe\xfd" + b"x" * 18 + b"\n",
        b"26 GNU.sparse.map=1,x,3,4\n22 GNU.sparse.major=9\n",
    ],
)
@pytest.mark.parametrize("kind", [b"x", b"g"])
@pytest.mark.timeout(20)
def test_damaged_pax_headers(records: bytes, kind: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(pax(records, kind))
    with refused("a.tar"):
        open_pictures(file)
    _read_or_sentence(lambda: list(read_archive(file)))


@pytest.mark.timeout(20)
def test_a_tar_file_that_leads_back_to_its_beginning(tmp_path: Path) -> None:
    """A negative size, which some versions of Python follow for ever."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    with refused("a.tar"):
        open_pictures(tmp_path / "a.tar")
    with refused("a.tar"):
        list(read_archive(tmp_path / "a.tar"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_shards_are_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("tar")
    whole = bytearray(tar(folder / "a.tar", sample(b"0")).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, 1023))] = data.draw(st.integers(0, 255))
    (folder / "a.tar").write_bytes(whole)
    _read_or_sentence(lambda: open_pictures(folder / "a.tar"))


def _read_or_sentence(read: Callable[[], object]) -> None:
    with suppress(MetamixerError):  # any other exception is a fault
        read()


# --- Pictures --------------------------------------------------------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _tiff(width: int, height: int, tile: int = 0) -> bytes:
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    data = zlib.compress(bytes(1000))
    where = 8 + 2 + 12 * (len(entries) + (4 if tile else 3)) + 4
    if tile:
        entries += [(322, 4, tile), (323, 4, tile), (324, 4, where), (325, 4, len(data))]
    else:
        entries += [(273, 4, where), (278, 4, height), (279, 4, len(data))]
    entries.sort()
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


def _gif(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "GIF")
    data = bytearray(file.getvalue())
    at = data.index(b",", 13)
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)  # the frame, not the screen
    return bytes(data)


BOMBS = {
    "png": _png(15_000, 12_000),
    "tiff": _tiff(60_000, 60_000),
    "tiff of one tile": _tiff(16, 16, 65_520),
    "gif": _gif(60_000, 60_000),
    "ppm": b"P6 60000 60000 255\n",
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.promise("bad input", "pictures that claim more pixels than Pillow opens are refused before any is decoded")
@pytest.mark.parametrize("kind", BOMBS)
def test_pictures_of_a_few_bytes_that_claim_gigabytes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "train" / "images" / "a.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(BOMBS[kind])
    assert len(BOMBS[kind]) < 100_000
    with refused("a.png cannot be read as a picture", megabytes=100):
        read_picture(file)
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.png").write_bytes(BOMBS[kind])
    with refused("a.png|no usable picture", megabytes=100):
        open_class_maps(tmp_path)


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: &t images/train\ntest: *t\nnames: &n [a, b]\nagain: [*n, *n]\n")
    names = ["a", "b"]
    expected = {"train": "images/train", "test": "images/train", "names": names, "again": [names, names]}
    assert read_yaml(tmp_path / "data.yaml") == expected
    for text in ("a: &a [*a]\n", "a: *b\n"):
        (tmp_path / "data.yaml").write_text(text)
        with refused("data.yaml cannot be read as YAML"):
            read_yaml(tmp_path / "data.yaml")


def test_photographs_of_108_megapixels_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(12_000, 9_000))
    with opened_picture(tmp_path / "a.png") as picture:
        assert picture.size == (12_000, 9_000)


def test_formats_that_start_other_programs_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with refused("a.png cannot be read as a picture .unknown format"):
        read_picture(tmp_path / "a.png")


def test_pictures_below_a_folder_whose_links_lead_back(tmp_path: Path) -> None:
    png(tmp_path / "a" / "b" / "c.png")
    (tmp_path / "a" / "b" / "again").symlink_to(tmp_path)
    assert pictures_below(tmp_path) == [tmp_path / "a" / "b" / "c.png"]


# --- Arrays ----------------------------------------------------------------------------------------------------------


def npy(shape: str, data: bytes = b"", dtype: str = "<f4") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


ARRAYS = {
    "more than there is": npy("(1000000000, 3)", bytes(12)),
    "more than numbers count": npy("(99999999999, 99999999999)"),
    "negative": npy("(-1, 3)", bytes(120)),
    "digits": npy(f"({'9' * 4000}, 3)"),
    "objects": npy("(1, 3)", bytes(24), "|O"),
    "deep": npy("(" * 3000),
    "version": b"\x93NUMPY\x09\x00" + bytes(100),
}


@pytest.mark.promise(
    "bad input", "arrays whose header states more than the file holds are refused before they are made"
)
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_claim_what_they_have_not(kind: str, tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "coord.npy").write_bytes(ARRAYS[kind])
    with refused("coord.npy"):
        Scenes(tmp_path)[0]
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("coord.npy", ARRAYS[kind])
    with refused("a.npz"):
        Scenes(tmp_path / "a.npz")[0]


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("coord", "text")
    with refused("a.npz .*coord is no array"):
        Scenes(tmp_path / "a.npz")[0]
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("coord.npy", "text")
        archive.writestr("readme.txt", "more")
    with refused("b.npz"):
        Scenes(tmp_path / "b.npz")[0]


def test_clouds_of_torch_that_are_larger_inside(tmp_path: Path) -> None:
    """A view of one number can have any shape; a compressed file can hold any number of zeros."""
    torch.save(
        {"coord": torch.zeros(1).expand(10**13, 3), "color": torch.zeros(1).expand(10**13, 3)}, tmp_path / "a.pth"
    )
    with refused("a.pth"):
        Scenes(tmp_path / "a.pth")[0]
    torch.save({"coord": torch.zeros(10, 3)}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as old, zipfile.ZipFile(tmp_path / "c.pth", "w") as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part), zipfile.ZIP_DEFLATED)
    with refused("c.pth"):
        Scenes(tmp_path / "c.pth")[0]


@given(points=st.integers(0, 40), by_column=st.booleans(), dtype=st.sampled_from(["<f4", "<f8", ">i2", "|u1"]))
@settings(deadline=None, max_examples=40)
def test_sound_arrays_are_read_as_numpy_reads_them(
    points: int, by_column: bool, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from metamixer.data.formats import read_npy, read_npz

    folder = tmp_path_factory.mktemp("npy")
    values = np.arange(3 * points).reshape(points, 3).astype(dtype, order="F" if by_column else "C")
    np.save(folder / "coord.npy", values)
    np.savez_compressed(folder / "a.npz", coord=values, other=np.array(["text"]))
    for found in (read_npy(folder / "coord.npy"), read_npz(folder / "a.npz", lambda name: name == "coord")["coord"]):
        np.testing.assert_array_equal(found, values)
        assert (found.dtype, found.flags.writeable) == (values.dtype, True)


def test_distortions_on_too_fine_a_grid() -> None:
    with refused("too little memory for noise on cells of 1e-09"):
        elastic_distortion(np.random.rand(10, 3) * 1e6, 1e-9, 1.0)
    with refused("elastic must be"):
        CloudAugmentation(elastic=((0.0, 1.0),))
