"""Point clouds: samples, the Lovász loss against its definition, mIoU on every point, voting, drawings."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metamixer as mm
from metamixer import MetamixerError
from metamixer.data.clouds import Cloud, Scenes, voxelise
from metamixer.tasks.point_clouds import (
    VIEWS,
    LabelledCloud,
    PointSegmentation,
    class_ious,
    confusion_matrix,
    evaluate_scenes,
    label_points,
    lovasz_softmax,
    segment_cloud,
    segmentation_metrics,
    vote,
)


@pytest.fixture(autouse=True)
def numpy_seed() -> None:
    """Augmentations draw from NumPy's generator."""
    np.random.seed(0)


def write(folder: Path, points: int, seed: int) -> None:
    """A floor (class 0) and a box on it (class 1), told apart by height and by colour; a few points unlabelled."""
    random = np.random.default_rng(seed)
    coord = random.uniform(0, 2, (points, 3)).astype(np.float32)
    segment = (random.random(points) < 0.5).astype(np.int64)
    coord[:, 2] = np.where(segment, coord[:, 2] / 2 + 0.5, 0.01)
    color = np.where(segment[:, None], 200, 50) + random.integers(-20, 20, (points, 3))
    segment[:3] = -1
    folder.mkdir(parents=True)
    for name, values in {"coord": coord, "color": color, "segment": segment}.items():
        np.save(folder / f"{name}.npy", values)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(3):
        write(tmp_path / "train" / f"room{i}", 300 + i, i)
    write(tmp_path / "val" / "room", 200, 9)
    return tmp_path


def task(data: Path, **kwargs: Any) -> PointSegmentation:
    settings = dict(
        model="ffnet_points_tiny", data=str(data), classes=("floor", "box"), features=("color",), grid=0.1,
        drop_path_rate=0.0,
    )  # fmt: skip
    made = PointSegmentation(**(settings | kwargs))
    made.open()
    return made


class ByColour(nn.Module):
    """Calls bright points boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.calls = 0

    def forward(self, feat: Tensor, grid_coord: Tensor, offset: Tensor) -> Tensor:
        self.calls += 1
        assert int(offset[-1]) == len(feat) == len(grid_coord.unique(dim=0))
        return 5 * feat.mean(1, keepdim=True) * self.weight


# --- Samples ---------------------------------------------------------------------------------------------------------


def test_samples_have_one_point_per_cell(data: Path) -> None:
    made = task(data)
    made.create_model()
    sample = made.sample(1, None)
    assert sample["feat"].shape == (len(sample["segment"]), 3)
    assert len(sample["grid_coord"].unique(dim=0)) == len(sample["segment"]) > 50
    assert sample["feat"].abs().max() <= 1
    few = task(data, points=20)
    few.create_model()
    assert len(few.sample(0, None)["feat"]) == 20
    part = task(data, share=0.5)
    part.create_model()
    assert len(part.sample(0, None)["feat"]) < 0.6 * len(sample["feat"])
    assert len(task(data, passes=5)) == 15
    assert "room2" in made.describe(5)


def test_batches_keep_clouds_apart_or_lay_them_over_each_other(data: Path) -> None:
    made = task(data, mix=0.0)
    made.create_model()
    samples = [made.sample(i, None) for i in range(3)]
    lengths = [len(sample["feat"]) for sample in samples]
    batch = made.collate(samples)
    assert batch["offset"].tolist() == np.cumsum(lengths).tolist()
    made.mix = 1.0
    mixed = made.collate(samples)
    assert len(mixed["offset"]) == 2  # three clouds: a pair and one
    first = mixed["grid_coord"][: mixed["offset"][0]]
    assert len(first) == len(first.unique(dim=0))
    cells = torch.cat([sample["grid_coord"] for sample in samples[:2]]).unique(dim=0)
    assert len(first) == len(cells)
    assert torch.equal(mixed["feat"][: lengths[0]], samples[0]["feat"])  # of two points in a cell the first stays
    assert len(made.collate(samples[:1])["offset"]) == 1


# --- Loss and metrics ------------------------------------------------------------------------------------------------


def test_lovasz_loss_is_the_jaccard_loss_on_hard_answers() -> None:
    """Its definition: an extension of the set function 'Jaccard loss of these mistakes', equal to it at the corners."""
    target = torch.tensor([0, 0, 1, 1, 1, 2])
    for answer in itertools.product(range(3), repeat=6):
        found = torch.tensor(answer)
        losses = []
        for label in range(3):
            union = ((found == label) | (target == label)).sum()
            losses.append(1 - ((found == label) & (target == label)).sum() / union)
        expected = torch.stack(losses).mean()
        torch.testing.assert_close(lovasz_softmax(torch.eye(3)[found], target), expected)


def test_lovasz_loss_in_between_is_the_sum_of_its_definition() -> None:
    random = torch.rand(7, 3, dtype=torch.float64)
    target = torch.tensor([0, 0, 2, 2, 2, 0, 2])  # class 1 does not occur and does not count
    expected = 0.0
    for label in (0, 2):
        errors = [abs(float(target[i] == label) - float(random[i, label])) for i in range(7)]
        order = sorted(range(7), key=lambda i: -errors[i])

        def jaccard(mistakes: list[int], label: int = label) -> float:
            own = {i for i in range(7) if target[i] == label}
            return len(mistakes) / len(own | set(mistakes)) if mistakes else 0.0

        expected += sum(errors[order[k]] * (jaccard(order[: k + 1]) - jaccard(order[:k])) for k in range(7)) / 2
    assert float(lovasz_softmax(random, target)) == pytest.approx(expected, abs=1e-12)


def test_loss_leaves_out_points_without_label(data: Path) -> None:
    made, model = task(data), ByColour()
    batch = {
        "feat": torch.tensor([[0.5], [-0.5], [0.9]]),
        "grid_coord": torch.arange(3)[:, None].expand(3, 3),
        "segment": torch.tensor([1, 0, -1]),
        "offset": torch.tensor([3]),
    }
    parts = made.loss(model, batch)
    assert float(parts["cross_entropy"].detach()) == pytest.approx(np.log(1 + np.exp(-5)), rel=1e-5)
    assert float(parts["lovasz"].detach()) == pytest.approx(1 / (1 + np.exp(5)), rel=1e-5)
    batch["segment"] = torch.full((3,), -1)
    without = made.loss(model, batch)
    assert without.keys() == parts.keys()  # processes that share them wait for each by its place
    nothing = sum(without.values())
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert model.weight.grad is not None


def test_metrics_are_those_of_the_sets() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(-1, 4, 500), random.integers(0, 5, 500)
    labelled = truth >= 0
    confusion = confusion_matrix(found, truth, 5)
    ious, recalls = [], []
    for label in range(5):
        own, named = (truth == label) & labelled, (found == label) & labelled
        ious.append((own & named).sum() / (own | named).sum())
        recalls.append((own & named).sum() / own.sum() if own.any() else np.nan)
        assert [((found == other) & own).sum() for other in range(5)] == confusion[label].tolist()
    np.testing.assert_allclose(class_ious(confusion), ious)
    metrics = segmentation_metrics(confusion)
    assert metrics["miou"] == pytest.approx(np.mean(ious[:4]))  # class 4 was found but does not occur
    assert metrics["class_accuracy"] == pytest.approx(np.mean(recalls[:4]))
    assert metrics["accuracy"] == pytest.approx((truth == found)[labelled].mean())
    assert np.isnan(class_ious(np.zeros((2, 2), int))).all()
    with pytest.raises(MetamixerError, match="none of the validation points has a label"):
        segmentation_metrics(np.zeros((2, 2), int))
    with pytest.raises(MetamixerError, match="the label 4 of point 1 is out of range: the network knows 3 classes"):
        confusion_matrix(np.zeros(3, int), np.array([0, 4, 1]), 3)


# --- Every point -----------------------------------------------------------------------------------------------------


def test_every_point_gets_the_label_of_its_cell(data: Path) -> None:
    cloud = Scenes(data / "val")[0]
    labels = label_points(ByColour(), cloud, ("color",), 0.7)
    shifted = cloud.coord - [*(cloud.coord.min(0) + cloud.coord.max(0))[:2] / 2, cloud.coord[:, 2].min()]
    cells = voxelise(shifted.astype(np.float32), 0.7)
    bright = cloud.attributes["color"].mean(1) > 127.5
    first = {cell: i for i, cell in reversed(list(enumerate(cells.cell_of)))}
    assert labels.tolist() == [int(bright[first[cell]]) for cell in cells.cell_of]
    assert 0 < (labels != bright).sum() < 100  # cells with both


def test_votes_look_at_every_point_itself(data: Path) -> None:
    cloud, model = Scenes(data / "val")[0], ByColour()
    bright = (cloud.attributes["color"].mean(1) > 127.5).astype(int)
    assert np.array_equal(vote(model, cloud, ("color",), 0.3, views=VIEWS[:1]), bright)
    fragments = model.calls
    assert fragments > 1
    assert np.array_equal(vote(model, cloud, ("color",), 0.3), bright)
    assert model.calls > 5 * fragments
    assert model.training


def test_views_scale_and_mirror() -> None:
    seen: list[Tensor] = []

    class Record(ByColour):
        def forward(self, feat: Tensor, grid_coord: Tensor, offset: Tensor) -> Tensor:
            seen.append(feat)
            return super().forward(feat, grid_coord, offset)

    normal = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    coord = np.arange(60, dtype=np.float32).reshape(20, 3)
    cloud = Cloud(coord, {"normal": normal}, None, "a")
    vote(Record(), cloud, ("coord", "normal"), 0.5, centre=False, views=((2.0, False), (1.0, True)))
    by_first = [t[t[:, 2].argsort()].numpy() for t in seen]
    np.testing.assert_allclose(by_first[0], np.concatenate([2 * coord, normal], 1))
    signs = np.array([-1, -1, 1])
    np.testing.assert_allclose(by_first[1], np.concatenate([coord * signs, normal * signs], 1))


def test_evaluation_is_on_every_point(data: Path) -> None:
    made, model = task(data, grid=0.7), ByColour()
    metrics = made.evaluate(model, torch.device("cpu"))
    cloud = Scenes(data / "val")[0]
    expected = confusion_matrix(label_points(model, cloud, ("color",), 0.7), cloud.segment, 2)
    assert metrics == segmentation_metrics(expected)
    assert expected.sum() == 197
    assert 0.2 < metrics["miou"] < 1
    assert model.training


# --- Training and results --------------------------------------------------------------------------------------------


def test_training_and_the_file(data: Path, tmp_path: Path) -> None:
    made = task(data, mix=0.5, grid=0.2)
    model = made.create_model().train()
    before = made.evaluate(model, torch.device("cpu"))["miou"]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        batch = made.collate([made.sample(i, None) for i in range(3)])
        loss = sum(made.loss(model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    assert made.evaluate(model, torch.device("cpu"))["miou"] > before + 0.15
    made.save(model, tmp_path / "points.safetensors")
    again = mm.create_model("ffnet_points_tiny", checkpoint=tmp_path / "points.safetensors")
    result = segment_cloud(again, Scenes(data / "val")[0])
    assert result.classes == ("floor", "box")
    assert np.array_equal(result.labels, segment_cloud(model, Scenes(data / "val")[0], ("color",), 0.2).labels)
    metrics, ious = evaluate_scenes(again, data / "val")
    assert metrics == made.evaluate(model, torch.device("cpu"))
    assert metrics["miou"] == pytest.approx(np.mean(list(ious.values())))
    assert json.loads(json.dumps(result.to_dict()))["miou"] == pytest.approx(metrics["miou"])


def test_drawing_shows_found_and_true_classes(tmp_path: Path) -> None:
    coord = np.random.default_rng(0).uniform(0, 1, (500, 3)).astype(np.float32)
    left = (coord[:, 0] < 0.5).astype(np.int64)
    result = LabelledCloud(Cloud(coord, {}, left, "a scene"), np.zeros(500, np.int64), ("one", "two"))
    first, second = (31, 119, 180), (174, 199, 232)  # of matplotlib's tab20

    def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((np.abs(picture.astype(int) - colour).max(-1) < 4).sum())

    both = np.asarray(result.draw())
    half = both.shape[1] // 2
    body = both[: int(0.85 * both.shape[0])]
    assert count(body[:, :half], first) > 300
    assert count(body[:, :half], second) == 0
    assert count(body[:, half:], second) > 150
    alone = LabelledCloud(Cloud(coord, {}, None, "a scene"), left, ("one", "two"))
    assert np.asarray(alone.draw()).shape[1] < both.shape[1]
    table, picture = result.save(tmp_path, "room")
    assert np.array_equal(np.load(table), result.labels)
    assert picture.read_bytes()[1:4] == b"PNG"
    assert alone.to_dict() == {"source": "a scene", "points": {"one": int((left == 0).sum()), "two": int(left.sum())}}


def test_a_single_point_and_a_single_cell_are_labelled(data: Path) -> None:
    model = mm.create_model("ffnet_points_tiny", in_channels=3, num_classes=2).eval()
    for points in (1, 4):
        cloud = Cloud(np.ones((points, 3), np.float32), {"color": np.ones((points, 3), np.float32)}, None, "dot")
        assert segment_cloud(model, cloud, ("color",)).labels.shape == (points,)


def test_scenes_that_cannot_be_trained_on(data: Path) -> None:
    (data / "train" / "room0" / "segment.npy").unlink()
    np.save(data / "train" / "room1" / "coord.npy", np.ones((301, 3), np.float32))
    made = task(data)
    made.create_model()
    with pytest.raises(MetamixerError, match="room0 has no labels"):
        made.sample(0, None)
    np.save(data / "train" / "room0" / "segment.npy", np.full(300, -1))
    with pytest.raises(MetamixerError, match="room0 has no labels: all its points are marked as unlabelled"):
        made.sample(0, None)
    with pytest.raises(MetamixerError, match=r"room1 lies in one cell of the network's coarsest grid \(0.8 m\)"):
        made.sample(1, None)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("segment", None, "val/room has no labels"),
        ("segment", np.full(200, -1), "val/room has no labels: all its points are marked as unlabelled"),
        ("segment", np.full(200, 2), "val/room: the label 2 of point 0 is out of range"),
        ("color", np.full((200, 3), np.nan), "val/room: color is NaN or infinite at point 0"),
    ],
)
def test_validation_scenes_are_looked_at_before_training(
    name: str, values: np.ndarray | None, message: str, data: Path
) -> None:
    file = data / "val" / "room" / f"{name}.npy"
    file.unlink() if values is None else np.save(file, values)
    with pytest.raises(MetamixerError, match=message):
        task(data)
    with pytest.raises(MetamixerError, match=message):
        evaluate_scenes(mm.create_model("ffnet_points_tiny", in_channels=6, num_classes=2), data / "val")


def test_grids_that_are_too_fine_name_the_scene(data: Path) -> None:
    cloud = replace(Scenes(data / "val")[0], coord=np.array([[0, 0, 0], [1e9, 1e9, 1e9]] * 100, np.float32))
    for use in (label_points, vote):
        with pytest.raises(MetamixerError, match=r"val/room spans .*: a grid of 1e-05 has too many cells there"):
            use(ByColour(), cloud, ("color",), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": ("colour",)}, "features must be among coord, color, normal, strength"),
        ({"grid": 0.0}, "grid must be a number above 0"),
        ({"share": 0.0}, "share must be a number above 0"),
        ({"classes": ("a",)}, "classes must name two or more"),
        ({"train": ("nowhere",)}, "nowhere: no such file"),
    ],
)
def test_settings_that_do_not_work(data: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MetamixerError, match=message):
        task(data, **change)


def test_networks_that_do_not_fit(data: Path) -> None:
    cloud = Scenes(data / "val")[0]
    with pytest.raises(MetamixerError, match="no classifier"):
        segment_cloud(mm.create_model("ffnet_points_tiny", num_classes=0), cloud)
    with pytest.raises(MetamixerError, match="reads 6 numbers a point, not color"):
        segment_cloud(mm.create_model("ffnet_points_tiny"), cloud, ("color",))
    with pytest.raises(MetamixerError, match="takes no argument 'in_channels'"):
        task(data, model="ffnet_tsf").create_model()
