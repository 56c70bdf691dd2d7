"""How well does the point network label lidar scans, beside gradient boosting on height and range alone?

    python benchmarks/point_clouds.py --data FOLDER [--run FOLDER | --checkpoint points.safetensors]

FOLDER holds semantickitti_train.npz and semantickitti_val.npz (``xyz``, ``remission``, ``label``). Without a checkpoint
the recipe ``semantickitti_samples`` is trained first; the run's folder lets an interrupted training go on. mIoU over
the classes that occur in the validation scans, on every point. Writes ``point_clouds.md`` beside this file and
``docs/images/point_clouds.jpg``, five drawn scans.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from metamixer.bench.machine import this_machine
from metamixer.data.clouds import IGNORED, Scenes
from metamixer.networks import FFNetPoints, create_network
from metamixer.tasks.point_clouds import (
    LabelledCloud,
    class_ious,
    confusion_matrix,
    segment_cloud,
    segmentation_metrics,
)
from metamixer.train import train
from metamixer.train.recipes import get_recipe
from metamixer.train.recipes.point_clouds import SEMANTICKITTI

SHEET = Path(__file__).parents[1] / "docs" / "images" / "point_clouds.jpg"


def main(
    data: Path,
    checkpoint: Path | None = None,
    run: Path | None = None,
    epochs: int | None = None,
    boosted_points: int = 200_000,
) -> None:
    """Train where needed, measure and write.

    Args:
        data: folder of both archives.
        checkpoint: weights of ``ffnet_points_tiny`` with its classes.
        run: folder of the training, which goes on where an earlier one in it was interrupted; by default temporary.
        epochs: instead of the recipe's; 1 tries the script out.
        boosted_points: training points of the gradient boosting.
    """
    config = get_recipe("semantickitti_samples")
    config = replace(config, task=replace(config.task, data=str(data)), epochs=epochs or config.epochs)
    with tempfile.TemporaryDirectory() as folder:
        trained = f"Weights: {checkpoint and checkpoint.name}."
        if checkpoint is None:
            result = train(replace(config, out=str(run or folder), resume="auto"))
            checkpoint = result.best
            trained = f"{config.epochs} epochs, seed {config.seed}; weights of epoch {result.epoch}."
        model = create_network(config.task.model, checkpoint=checkpoint)
    assert isinstance(model, FFNetPoints)
    scenes = Scenes(data / "semantickitti_val.npz", len(SEMANTICKITTI))
    labelled = [segment_cloud(model, cloud) for cloud in scenes]
    boosted = _boosted(data, boosted_points)
    rows = []
    for name, labels in {"network": [found.labels for found in labelled], "gradient boosting": boosted}.items():
        confusion = sum(
            confusion_matrix(found, cloud.segment, len(SEMANTICKITTI))
            for found, cloud in zip(labels, scenes, strict=True)
        )
        metrics, ious = segmentation_metrics(confusion), class_ious(confusion)
        occurs = confusion.sum(1) > 0
        cells = [f"{metrics[key]:.3f}" for key in ("miou", "class_accuracy", "accuracy")]
        rows.append(f"| {name} | " + " | ".join([*cells, *(f"{iou:.2f}" for iou in ious[occurs])]) + " |")
    names = [name for name, here in zip(SEMANTICKITTI, occurs, strict=True) if here]
    lines = [
        "# Labelling lidar scans",
        "",
        f"21 training and {len(scenes)} validation scans of SemanticKITTI as range images; every point with a label.",
        f"Gradient boosting reads height and range alone ({boosted_points:,} training points). {trained}",
        f"{this_machine()}.",
        "",
        "| | mIoU | class accuracy | accuracy | " + " | ".join(names) + " |",
        "|---|---|---|---|" + "---|" * len(names),
        *rows,
        "",
        "Made by `python benchmarks/point_clouds.py --data …`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    _draw(labelled).save(SHEET, quality=80)


def _draw(labelled: list[LabelledCloud], radius: float = 30.0) -> Image.Image:
    """All scans below each other, as far as ``radius`` metres from the sensor."""
    sheets = []
    for found in labelled:
        near = np.flatnonzero(np.linalg.norm(found.cloud.coord[:, :2], axis=1) < radius)
        sheets.append(LabelledCloud(found.cloud.take(near), found.labels[near], found.classes).draw().reduce(2))
    sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for drawn in sheets:
        sheet.paste(drawn, (0, top))
        top += drawn.height
    return sheet


def _boosted(data: Path, points: int) -> list[np.ndarray]:
    """Labels of the validation scans by scikit-learn's histogram gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    def features(coord: np.ndarray) -> np.ndarray:
        return np.stack([coord[:, 2], np.linalg.norm(coord, axis=1)], axis=1)

    train_scenes, val_scenes = (Scenes(data / f"semantickitti_{part}.npz") for part in ("train", "val"))
    clouds = list(train_scenes)
    x = np.concatenate([features(cloud.coord) for cloud in clouds])
    y = np.concatenate([cloud.segment for cloud in clouds])
    rows = np.random.default_rng(0).permutation(np.flatnonzero(y != IGNORED))[:points]
    # Not early stopping on a split of its own: all rows are used.
    boosting = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0).fit(x[rows], y[rows])
    return [boosting.predict(features(cloud.coord)) for cloud in val_scenes]


if __name__ == "__main__":
    tyro.cli(main)
