"""Weights shipped with the package: found by listing a folder, known to timm under their tags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metamixer import MetamixerError, create_model
from metamixer.data.transforms import Preprocessing
from metamixer.networks import NETWORKS
from metamixer.weights import embedded, read_metadata, save_checkpoint
from metamixer.weights.embedded import FOLDER, embedded_weights

PREPROCESSING = Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of weights for one network, as the package would ship them."""
    folder = tmp_path_factory.mktemp("embedded")
    for tag, classes in (("cifar10", ["cat", "dog"]), ("tiny_in", ["n01440764", "n02123045", "other"])):
        torch.manual_seed(len(classes))
        model = create_model("affnet_nano", num_classes=len(classes))
        save_checkpoint(model, folder / f"affnet_nano.{tag}.safetensors", classes, PREPROCESSING, torch.float16)
        (folder / f"affnet_nano.{tag}.md").write_text("# A model card\n")
    return folder


def test_listing(folder: Path) -> None:
    found = embedded_weights(folder)
    assert list(found) == ["affnet_nano.tiny_in", "affnet_nano.cifar10"]  # most classes first
    assert found["affnet_nano.cifar10"].metadata.classes == ("cat", "dog")
    assert found["affnet_nano.cifar10"].card.read_text() == "# A model card\n"


def test_unfit_files_are_left_out(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = folder / "affnet_nano.cifar10.safetensors"
    (tmp_path / "ffnet_nano.cifar10.safetensors").write_bytes(good.read_bytes())
    (tmp_path / "affnet_nano.cut.safetensors").write_bytes(good.read_bytes()[:50])
    assert embedded_weights(tmp_path) == {}
    assert "does not say that it belongs" in caplog.text
    assert "cut short" in caplog.text


def test_shipped_files_are_whole_and_have_cards() -> None:
    shipped = embedded_weights()
    assert len(shipped) == len(list(FOLDER.glob("*.safetensors")))
    for name, weights in shipped.items():
        assert weights.path.stat().st_size <= 3 * 2**20
        assert weights.card.read_text().startswith(f"# {name}\n")
        if weights.metadata.architecture not in NETWORKS:  # a classifier
            assert weights.metadata.classes is not None
            assert weights.metadata.preprocessing is not None


def test_figures_are_those_of_the_card(tmp_path: Path) -> None:
    for weights in embedded_weights().values():
        if weights.metadata.architecture not in NETWORKS:
            assert f"top-1 {weights.top1:.2f} %" in weights.card.read_text()
    path = tmp_path / "affnet_nano.x.safetensors"
    measured = embedded.Embedded(path, weights.metadata)
    assert measured.top1 is None
    for text, message in (
        ('{"top1": "85 %"}', "top1 should be a valid number"),
        ('{"top1": 850}', "less than or equal"),
    ):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(MetamixerError, match=message):
            assert measured.top1


def test_the_index_repeats_the_headers(folder: Path) -> None:
    """Fails when a shipped file is new or another: ``metamixer.weights.embedded.write_index()`` writes it."""
    shipped = embedded_weights()
    assert (FOLDER / "index.json").is_file()
    assert {name: read_metadata(weights.path) for name, weights in shipped.items()} == {
        name: weights.metadata for name, weights in shipped.items()
    }
    before = embedded_weights(folder)
    embedded.write_index(folder)
    assert embedded_weights(folder) == before
    (folder / "index.json").unlink()


SCRIPT = """
import sys
from pathlib import Path
import metamixer.weights.embedded as embedded
assert "timm" not in sys.modules
embedded.FOLDER = Path(sys.argv[1])
import torch, timm
import metamixer as mm
from metamixer.models import class_names, load_model

assert mm.list_weights("affnet_nano") == ["affnet_nano.tiny_in", "affnet_nano.cifar10"]
assert timm.list_models("affnet_nano", pretrained=True) == ["affnet_nano.cifar10", "affnet_nano.tiny_in"]
plain = timm.create_model("affnet_nano.cifar10", pretrained=True).eval()
ours = mm.create_model("affnet_nano.cifar10").eval()
picture = torch.randn(1, 3, 32, 32)
assert ours(picture).shape == (1, 2) and torch.equal(plain(picture), ours(picture))
assert next(ours.parameters()).dtype == torch.float32
cfg = ours.pretrained_cfg
assert (cfg["input_size"], cfg["mean"], cfg["label_names"]) == ((3, 32, 32), (0.5, 0.5, 0.5), ("cat", "dog"))
assert class_names(ours) == ["cat", "dog"]

default = load_model("affnet_nano")
assert torch.equal(default.head.fc.weight, timm.create_model("affnet_nano", pretrained=True).head.fc.weight)
assert class_names(default) == ["n01440764", "n02123045", "other"]
assert class_names(default, readable=True)[0].startswith("tench") and class_names(default, readable=True)[2] == "other"

untrained = mm.create_model("affnet_nano.cifar10", pretrained=False)
assert not torch.equal(untrained.head.fc.weight, ours.head.fc.weight)
more = mm.create_model("affnet_nano.cifar10", num_classes=5)
assert more.num_classes == 5 and torch.equal(more.stem.conv.weight, ours.stem.conv.weight)
features = timm.create_model("affnet_nano.cifar10", pretrained=True, features_only=True)
assert torch.equal(features.model.stem.conv.weight, ours.stem.conv.weight)
print("fine")
"""


def test_timm_and_metamixer_know_them(folder: Path) -> None:
    """In a process of its own, because the registry is filled at import."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "fine\n"


def test_the_folder_can_be_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FOLDER", folder)
    assert list(embedded_weights()) == ["affnet_nano.tiny_in", "affnet_nano.cifar10"]
