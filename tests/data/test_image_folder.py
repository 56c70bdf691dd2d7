"""Folders of pictures, read in this process and in workers."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from metamixer.data.image_folder import ImageFolder, PictureLoader, split_of
from metamixer.data.transforms import Preprocessing, evaluation_transform, training_transform
from metamixer.errors import MetamixerError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, count in {"red": 3, "blue": 2}.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (20, 30), name).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_classes_and_files_are_sorted(root: Path) -> None:
    (root / ".cache").mkdir()
    folder = ImageFolder(root)
    assert folder.classes == ["blue", "red"]
    assert [(Path(folder.name(i)).name, label) for i, label in enumerate(folder.labels)] == [
        ("0.png", 0),
        ("1.png", 0),
        ("0.png", 1),
        ("1.png", 1),
        ("2.png", 1),
    ]
    picture, label = folder[4]
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert label == 1


def test_given_classes_decide_the_indices(root: Path) -> None:
    folder = ImageFolder(root, classes=["red", "green", "blue"])
    assert {Path(folder.name(i)).parent.name: label for i, label in enumerate(folder.labels)} == {"red": 0, "blue": 2}
    with pytest.raises(MetamixerError, match=r"'blue' is none of the 2 known classes"):
        ImageFolder(root, classes=["red", "green"])


def test_what_is_no_image_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="no such folder"):
        ImageFolder(tmp_path / "missing")
    with pytest.raises(MetamixerError, match="holds no class folders"):
        ImageFolder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MetamixerError, match="is a file"):
        ImageFolder(tmp_path / "file")
    (tmp_path / "cat").mkdir()
    with pytest.raises(MetamixerError, match="cat holds no pictures"):
        ImageFolder(tmp_path)


def test_split_is_the_first_that_holds_classes(root: Path) -> None:
    assert split_of(root, ("val", "test")) is None
    (root / "val").mkdir()
    (root / "test" / "cat").mkdir(parents=True)
    assert split_of(root, ("val", "test")) == root / "test"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_named_in_one_sentence(root: Path, workers: int) -> None:
    (root / "red" / "1.png").write_text("no picture")
    preprocessing = Preprocessing(image_size=16)
    loader = PictureLoader(ImageFolder(root, evaluation_transform(preprocessing)), 2, num_workers=workers)
    read = []
    with pytest.raises(MetamixerError) as caught:
        read.extend(len(labels) for _, labels in loader)
    assert str(caught.value) == f"{root}/red/1.png cannot be read as a picture (unknown format)"
    assert read == [2]


def test_normalise_and_sizes() -> None:
    config = dict(
        input_size=(3, 32, 32), crop_pct=0.5, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
    )
    preprocessing = Preprocessing.of(config)
    # The outer half is cropped away: white within, black around.
    picture = Image.new("RGB", (128, 96))
    picture.paste("white", (24, 8, 104, 88))
    pixels = evaluation_transform(preprocessing)(picture)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(preprocessing.normalise(pixels[None]), torch.ones(1, 3, 32, 32))
    assert Preprocessing.of(config, image_size=48).image_size == 48


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 2)])
def test_tiny_and_long_pictures_fit_every_transform(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    for transform in (evaluation_transform(Preprocessing(image_size=32)), training_transform(32, (0.35, 1.0))):
        pixels = transform(picture)
        assert pixels.shape == (3, 32, 32)
        assert pixels.flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]
