"""How well does the point network label lidar scans, beside gradient boosting on height and range alone?

    python benchmarks/point_clouds.py --data FOLDER [--checkpoint points.safetensors]

FOLDER holds semantickitti_train.npz and semantickitti_val.npz (``xyz``, ``remission``, ``label``). Without a checkpoint
the recipe ``semantickitti_samples`` is trained first. mIoU over the classes that occur in the validation scans, on
every point. Writes ``point_clouds.md`` and ``point_clouds.png``, five drawn scans, beside this file.
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
from metamixer.tasks.point_clouds import class_ious, confusion_matrix, segment_cloud, segmentation_metrics
from metamixer.train import train
from metamixer.train.recipes import get_recipe
from metamixer.train.recipes.point_clouds import SEMANTICKITTI


def main(data: Path, checkpoint: Path | None = None, epochs: int | None = None, boosted_points: int = 200_000) -> None:
    """Train where needed, measure and write.

    Args:
        data: folder of both archives.
        checkpoint: weights of ``ffnet_points_tiny`` with its classes.
        epochs: instead of the recipe's; 1 tries the script out.
        boosted_points: training points of the gradient boosting.
    """
    config = get_recipe("semantickitti_samples")
    config = replace(config, task=replace(config.task, data=str(data)), epochs=epochs or config.epochs)
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint = train(replace(config, out=folder, overwrite=True)).best
        model = create_network(config.task.model, checkpoint=checkpoint)
    assert isinstance(model, FFNetPoints)
    scenes = Scenes(data / "semantickitti_val.npz", len(SEMANTICKITTI))
    results = [segment_cloud(model, cloud) for cloud in scenes]
    boosted = _boosted(data, boosted_points)
    rows = []
    for name, labels in {"network": [result.labels for result in results], "gradient boosting": boosted}.items():
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
        f"Gradient boosting reads height and range alone ({boosted_points:,} training points). {config.epochs} epochs,"
        f" seed {config.seed}.",
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
    sheets = [result.draw() for result in results]
    sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for drawn in sheets:
        sheet.paste(drawn, (0, top))
        top += drawn.height
    sheet.reduce(2).save(Path(__file__).with_suffix(".png"))


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
