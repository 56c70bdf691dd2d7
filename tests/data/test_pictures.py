"""Reading pictures: every mode becomes upright 8-bit RGB, and what is no picture becomes one sentence."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image

from metamixer.data import pictures
from metamixer.data.pictures import opened_picture, pictures_below, read_picture, to_rgb
from metamixer.errors import MetamixerError


def photograph(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth picture without symmetry, so that any turn or flip shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, x * y], -1)).round().astype(np.uint8))


def pixels(path: Path) -> np.ndarray:
    picture = read_picture(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_rgb_is_kept_bit_for_bit(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(photograph()))


# EXIF orientation → how a camera held that way stores the upright picture
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_rotated_equals_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright, way = photograph(), STORED[orientation]
    stored = upright if way is None else upright.transpose(way)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {} if suffix != "jpg" else {"quality": 100, "subsampling": 0}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **lossless)
    read = pixels(tmp_path / f"a.{suffix}")
    assert read.shape == (24, 40, 3)
    np.testing.assert_allclose(read, np.asarray(upright), atol=4 if suffix == "jpg" else 0)


def test_plain_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", quality=80)
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_orientation_in_xmp_counts_too(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    photograph().save(tmp_path / "a.jpg", xmp=xmp)
    assert pixels(tmp_path / "a.jpg").shape == (40, 24, 3)


def test_damaged_exif_leaves_the_picture(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff nonsense")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(photograph()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(tmp_path: Path, mode: str) -> None:
    alpha = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    black = Image.new(mode, (3, 1))
    black.putalpha(alpha)
    black.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[0], [[255] * 3, [127] * 3, [0] * 3])


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(pixels(tmp_path / "opaque.png")[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    for transparency in (1, bytes([255, 0, 255])):  # one index, or an alpha per index
        picture.save(tmp_path / "clear.png", transparency=transparency)
        np.testing.assert_array_equal(pixels(tmp_path / "clear.png")[0], [[255, 0, 0], [255] * 3, [0, 0, 255]])


def test_cmyk_of_a_jpeg_and_a_tiff(tmp_path: Path) -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red.save(tmp_path / "a.jpg", quality=100)
    red.save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        np.testing.assert_allclose(pixels(tmp_path / name)[4, 4], [255, 0, 0], atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_by_its_format(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257 * 10, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{suffix}")[0, :, 0], [0, 10, 255])
    # A nearly black picture stays nearly black: its largest value says nothing of the range.
    Image.fromarray(np.array([[0, 200]], np.uint16)).save(tmp_path / f"dark.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"dark.{suffix}")[0, :, 0], [0, 1])


def test_sixteen_bit_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0], [65535]], np.uint16)).save(tmp_path / "a.png", exif=exif)  # 1 wide, 2 high
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[..., 0], [[255, 0]])


@pytest.mark.parametrize(("largest", "expected"), [(1.0, 51), (255.0, 51), (1000.0, 51)])
def test_float_grey(tmp_path: Path, largest: float, expected: int) -> None:
    values = np.array([[-1, 0.2 * largest, largest, np.nan]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0, :, 0], [0, expected, 255, 0])


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_pixel(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (1, 1), "white").save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), [[[255] * 3]])


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")]
    )
    np.testing.assert_array_equal(pixels(tmp_path / "a.gif")[0, 0], [255, 0, 0])


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    photograph(200, 150).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return file.getvalue()


def sentence(path: Path) -> str:
    with pytest.raises(MetamixerError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_is_refused(tmp_path: Path, suffix: str) -> None:
    data = encoded(suffix)
    for kept in (10, len(data) // 2):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[:kept])
        assert "cannot be read as a picture" in sentence(path)


def test_every_damaged_picture_reads_or_gives_a_sentence(tmp_path: Path) -> None:
    """No decoder's own exception comes through, wherever the bytes are wrong."""
    random = np.random.default_rng(0)
    sentences = []
    for suffix in ("jpg", "png", "tif", "webp", "gif"):
        data = encoded(suffix)
        path = tmp_path / f"damaged.{suffix}"
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = random.integers(0, min(len(damaged), 400), 20)  # mostly in the header
            damaged[at] = random.integers(0, 256, 20)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_picture(path).mode == "RGB"
            except MetamixerError as error:
                sentences.append(str(error))
    assert len(sentences) > 50
    assert all("damaged." in sentence and "\n" not in sentence for sentence in sentences)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.png"
    text.write_text("This is not a picture.\n" * 100)
    empty.touch()
    assert "unknown format" in sentence(text)
    assert "unknown format" in sentence(empty)
    assert "no such file" in sentence(tmp_path / "missing.jpg")
    assert "is a folder" in sentence(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    """A few bytes that claim to be 60000 × 60000 pixels."""
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0, 0x3FC53A8C)
    (tmp_path / "bomb.png").write_bytes(header)
    assert "cannot be read as a picture" in sentence(tmp_path / "bomb.png")


def test_pictures_below_is_deep_sorted_and_leaves_out_the_rest(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pictures_below(tmp_path) == [tmp_path / name for name in ("a.png", "b.JPG", "deep/er/c.webp")]


def _odd_pictures(folder: Path) -> list[Path]:
    """Files that Pillow warns of and reads; the last one's header states 108 million pixels, which it has not."""
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(folder / "palette.png", transparency=bytes([255, 0, 255]))
    photograph().save(folder / "exif.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00\x12\x01")
    photograph().save(folder / "large.png")
    png = bytearray((folder / "large.png").read_bytes())
    png[16:24] = struct.pack(">II", 12_000, 9_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (folder / "large.png").write_bytes(png)
    return [folder / name for name in ("palette.png", "exif.jpg", "large.png")]


def _read_or_look(path: Path) -> tuple[int, int]:
    if path.stem != "large":
        return read_picture(path).size
    with opened_picture(path) as picture:
        return picture.size


def _read_twice_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading that begins first ends first, while the other one is under way."""
    first_in, second_in, first_out = Event(), Event(), Event()

    def slow(picture: Image.Image) -> Image.Image:
        if not first_in.is_set():
            first_in.set()
            assert second_in.wait(60)
        else:
            second_in.set()
            assert first_out.wait(60)
        return to_rgb(picture)

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as pool:
        patched.setattr(pictures, "to_rgb", slow)
        first = pool.submit(read_picture, path)
        assert first_in.wait(60)
        second = pool.submit(read_picture, path)
        first.result(60)
        first_out.set()
        second.result(60)


def test_threads_that_read_odd_pictures_leave_the_warnings_of_the_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _odd_pictures(tmp_path)
    sizes = [(3, 1), (40, 24), (12_000, 9_000)]
    heard = 0
    for file in files:  # so that what is silent below would be heard
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Image.open(file) as picture:
                if file.stem != "large":
                    picture.convert("RGB")
        heard += bool(caught)
    assert heard >= 2
    before = list(warnings.filters)  # among them "error"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_read_or_look, files * 60))
    assert found == sizes * 60
    assert warnings.filters == before
    _read_twice_at_once(files[0], monkeypatch)
    assert warnings.filters == before
    with opened_picture(files[0]), pytest.warns(UserWarning, match="of the user"):
        warnings.warn("of the user", UserWarning, stacklevel=1)
    with opened_picture(files[0]):  # somebody else's block, which ends later
        block = warnings.catch_warnings()
        block.__enter__()
    block.__exit__(None, None, None)
    assert warnings.filters == before
