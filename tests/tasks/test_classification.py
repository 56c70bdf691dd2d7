"""The task: its data, its augmentations, its loss with and without a teacher."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import metamixer as mm
from metamixer.tasks.classification import Classification
from metamixer.tasks.distillation import Teacher, distillation_loss, load_teacher

SMALL = ("depths=(1,1,1,1)", "dims=(8,16,24,32)")


def save(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


@pytest.fixture
def task(tmp_path: Path) -> Classification:
    for split in ("train", "val"):
        for colour in ("red", "green", "blue"):
            for i in range(2):
                save(tmp_path / "data" / split / colour / f"{i}.png", colour)
    return Classification("metaformer_nano", str(tmp_path / "data"), image_size=32, model_args=SMALL, smoothing=0.1)


def opened(task: Classification) -> tuple[Classification, nn.Module]:
    task.open()
    return task, task.create_model()


def seeded_sample(task: Classification, index: int, size: int | None = None) -> tuple[Tensor, int]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return task.sample(index, size)


def test_samples_batches_and_names(task: Classification) -> None:
    task, _ = opened(task)
    assert len(task) == 6
    assert task.classes == ["blue", "green", "red"]
    picture, label = seeded_sample(task, 5)
    assert (picture.shape, picture.dtype, label) == ((3, 32, 32), torch.uint8, 2)
    assert picture.float().mean((1, 2)).tolist() == [255, 0, 0]
    assert seeded_sample(task, 0, size=48)[0].shape == (3, 48, 48)
    assert task.describe(5).endswith("train/red/1.png")
    pictures, labels = task.collate([seeded_sample(task, i) for i in range(6)])
    assert (pictures.shape, labels.tolist()) == ((6, 3, 32, 32), [0, 0, 1, 1, 2, 2])


def test_the_settings_reach_the_transform(task: Classification) -> None:
    settings: dict[str, Any] = dict(
        crop_scale=(0.2, 0.3),
        crop_ratio=(0.5, 2.0),
        interpolation="random",
        policy="rand",
        magnitude=5.0,
        magnitude_std=0.1,
        colour_jitter=0.3,
        erase=0.4,
    )
    task, _ = opened(replace(task, **settings))
    assert {name: getattr(task.transform, name) for name in settings} == settings
    assert task.transform.mean == task.preprocessing.mean
    before, after = (opened(replace(task, erase=erase))[0] for erase in (0.0, 1.0))
    assert not torch.equal(seeded_sample(before, 0)[0], seeded_sample(after, 0)[0])


def test_the_loss_is_cross_entropy_with_smoothing(task: Classification) -> None:
    task, model = opened(task)
    model.eval()
    pictures, labels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    logits = model(task.preprocessing.normalise(pictures))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(task.loss(model, (pictures, labels)), expected)


class Recorder(nn.Module):
    """Keeps what it is shown, and answers with its channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = mm.create_model("metaformer_nano").pretrained_cfg
        self.num_classes = 3
        self.seen: list[Tensor] = []

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen.append(pictures)
        return pictures.mean((2, 3))


def test_mixed_batches_share_pictures_and_labels(task: Classification) -> None:
    """Red, green and blue: the share of each colour in a picture is the share of its class in the label."""
    pictures = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    for i in range(3):
        pictures[i, i] = 255
    labels = torch.arange(3)
    for settings in (dict(mixup=1.0), dict(cutmix=1.0)):
        mixing, _ = opened(replace(task, smoothing=0.0, **settings))
        mixing.preprocessing = replace(mixing.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        model = Recorder()
        random.seed(1)
        torch.manual_seed(1)
        loss = mixing.loss(model, (pictures, labels))
        shares = model.seen[0].mean((2, 3))
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
        assert 0 < float(shares[0, 0]) < 1
        torch.testing.assert_close(loss, -(shares * shares.log_softmax(1)).sum(1).mean(), rtol=1e-4, atol=1e-4)
    plain, _ = opened(replace(task, mixup=1.0, mix_probability=0.0))
    model = Recorder()
    plain.loss(model, (pictures, labels))
    torch.testing.assert_close(model.seen[0], plain.preprocessing.normalise(pictures))


def test_classes_that_cannot_be_learnt(task: Classification, tmp_path: Path) -> None:
    save(tmp_path / "one" / "train" / "red" / "0.png", "red")
    save(tmp_path / "one" / "val" / "red" / "0.png", "red")
    with pytest.raises(mm.MetamixerError, match="holds the class 'red' alone"):
        replace(task, data=str(tmp_path / "one")).open()
    data = Path(task.data)
    (data / "val" / "blue").rename(data / "val" / "purple")
    with pytest.raises(mm.MetamixerError, match="'purple' is none of the 3 known classes"):
        task.open()
    (data / "val").rename(data / "other")
    with pytest.raises(mm.MetamixerError, match="named one of val, validation, test"):
        task.open()
    for file in (data / "train" / "green").iterdir():
        file.unlink()
    with pytest.raises(mm.MetamixerError, match=r"class folder .*green holds no pictures"):
        task.open()


def test_hard_and_soft_distance_to_a_teacher() -> None:
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(distillation_loss(student, teacher, "hard"), F.cross_entropy(student, teacher.argmax(1)))
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    torch.testing.assert_close(distillation_loss(student, teacher, "soft", 3.0), 9 * (p * (p / q).log()).sum(1).mean())
    assert distillation_loss(teacher, teacher, "soft", 2.0).abs() < 1e-12


@pytest.fixture
def teacher_file(task: Classification, tmp_path: Path) -> Path:
    """A small network that expects pictures otherwise normalised."""
    task, model = opened(task)
    path = tmp_path / "teacher.safetensors"
    task.preprocessing = replace(task.preprocessing, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    task.save(model, path)
    return path


def test_a_teacher_sees_the_pictures_in_its_own_way(teacher_file: Path) -> None:
    teacher = Teacher(str(teacher_file), classes=3)
    model = teacher.model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    pictures = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(teacher(pictures), model((pictures / 255 - 0.5) / 0.25))
    torch.testing.assert_close(teacher(pictures / 255), teacher(pictures))  # mixed batches are floats
    sized = Teacher(str(teacher_file), classes=3, size=32)
    inputs = F.interpolate((pictures / 255 - 0.5) / 0.25, (32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(sized(pictures), model(inputs), rtol=1e-4, atol=1e-5)


def test_a_teacher_is_moved_once(teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(str(teacher_file), classes=3)
    moves: list[torch.device] = []
    monkeypatch.setattr(teacher.model, "to", moves.append)
    for _ in range(3):
        teacher(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert moves == [torch.device("cpu")]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_learning_from_a_teacher(task: Classification, teacher_file: Path, kind: Any) -> None:
    task, model = opened(replace(task, teacher=str(teacher_file), distillation=kind, alpha=0.7, temperature=2.0))
    model.eval()
    pictures, labels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    logits = model(task.preprocessing.normalise(pictures))
    taught = Teacher(str(teacher_file), 3)(pictures)
    losses = task.loss(model, (pictures, labels))
    assert isinstance(losses, dict)
    torch.testing.assert_close(losses["labels"], 0.3 * F.cross_entropy(logits, labels, label_smoothing=0.1))
    torch.testing.assert_close(losses["teacher"], 0.7 * distillation_loss(logits, taught, kind, 2.0))
    losses["teacher"].backward()
    assert any(weight.grad is not None for weight in model.parameters())
    # Reading processes get the task without the teacher.
    assert pickle.loads(pickle.dumps(task))._teacher is None


def test_the_second_classifier_of_casvit_learns_from_the_teacher(task: Classification, teacher_file: Path) -> None:
    distilled = replace(
        task,
        model="casvit_nano",
        model_args=("distilled=True", "depths=(1,1,1,1)", "dims=(8,16,24,32)"),
        teacher=str(teacher_file),
    )
    distilled, model = opened(distilled)
    head: Any = model.head
    for name, trained in (("labels", head.fc), ("teacher", head.fc_dist)):
        model.zero_grad()
        pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        losses = distilled.loss(model.train(), (pictures, torch.tensor([0, 1, 2, 1])))
        assert isinstance(losses, dict)
        losses[name].backward()
        assert [head.fc.weight.grad is not None, head.fc_dist.weight.grad is not None] == [
            trained is head.fc,
            trained is head.fc_dist,
        ]
    assert isinstance(model.eval()(torch.zeros(1, 3, 32, 32)), Tensor)  # the mean of both
    metrics = distilled.evaluate(model, torch.device("cpu"))
    assert metrics["count"] == 6


@pytest.mark.promise(
    "bad input", "arguments that no network takes, and networks too large for memory, are refused unbuilt"
)
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("dims=(16384,16384,16384,16384)", r"memory for training metaformer_nano with \d+ weights"),
        ("checkpoint_path='/etc/passwd'", "checkpoint_path is no entry that is known there"),
        ("pretrained_cfg_overlay={'file':'/etc/passwd'}", "pretrained_cfg_overlay is no entry that is known there"),
        ("device='meta'", "device is no entry that is known there"),
        ("features_only=True", "features_only is no entry that is known there"),
        ("mixer_args={'groups':0}", r"metaformer_nano refuses its arguments \(.*zero\)"),
    ],
)
def test_arguments_that_no_network_has(task: Classification, argument: str, sentence: str) -> None:
    task.model_args = ("mixer=dsm", argument)
    task.open()
    with pytest.raises(mm.MetamixerError, match=sentence):
        task.create_model()


def test_teachers_that_do_not_fit(teacher_file: Path) -> None:
    with pytest.raises(mm.MetamixerError, match="knows 3 classes, the data has 5"):
        Teacher(str(teacher_file), classes=5)
    with pytest.raises(mm.MetamixerError, match="unknown teacher 'resnet_18'; did you mean 'resnet18'"):
        load_teacher("resnet_18")
    with pytest.raises(mm.MetamixerError, match="no such file"):
        load_teacher("missing/teacher.safetensors")
    with safe_open(teacher_file, "pt") as file:
        metadata = file.metadata()
    state = load_file(teacher_file)
    state["head.fc.bias"][1] = float("nan")
    save_file(state, teacher_file, metadata)
    with pytest.raises(
        mm.MetamixerError, match=r"the teacher .* hold values that are not finite, first in head.fc.bias"
    ):
        Teacher(str(teacher_file), classes=3)
