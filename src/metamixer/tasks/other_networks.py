"""Prediction and evaluation with the networks that classify no pictures, by the network alone: for the commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn

from metamixer.data.clouds import Scenes
from metamixer.data.pictures import pictures_below
from metamixer.errors import MetamixerError
from metamixer.networks import FFNetPoints, FFNetSR, FFNetTSF
from metamixer.tasks.forecasting import evaluate_series, forecast
from metamixer.tasks.point_clouds import evaluate_scenes, segment_cloud
from metamixer.tasks.super_resolution import enlarge, evaluate_folder

KINDS = (FFNetSR, FFNetTSF, FFNetPoints)


class Result(Protocol):
    """What a network made of a file: an enlarged picture, a forecast, a labelled cloud."""

    def to_dict(self) -> dict[str, Any]:
        """What can be written as JSON."""
        ...

    def draw(self) -> Image.Image:
        """A picture of it."""
        ...

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write its files into a folder, their names beginning with ``name``; returns their paths."""
        ...


def predict_file(network: nn.Module, path: str | Path) -> Iterator[tuple[str, Result]]:
    """What a network makes of a file, or one after the other of the pictures or scenes of a folder.

    Args:
        network: one of ``KINDS``, on its device.
        path: pictures for super-resolution, a CSV file for forecasting, scenes for point clouds.

    Yields a name for each result's files, and the result. Raises MetamixerError as the tasks do, when it comes to the
    file in question.
    """
    path = Path(path)
    if isinstance(network, FFNetSR):
        pictures = pictures_below(path) if path.is_dir() else [path]
        if not pictures:
            raise MetamixerError(f"{path} holds no pictures")
        for picture in pictures:
            yield picture.stem, enlarge(network, picture)
    elif isinstance(network, FFNetTSF):
        yield path.name.split(".")[0], forecast(network, path)
    elif isinstance(network, FFNetPoints):
        scenes = Scenes(path, network.num_classes)
        for i, cloud in enumerate(scenes):
            name = scenes.files[i].stem
            yield f"{name}_{i:03}" if len(scenes) > 1 else name, segment_cloud(network, cloud)
    else:
        raise MetamixerError(f"{type(network).__name__} is none of {', '.join(kind.__name__ for kind in KINDS)}")


def evaluate_data(network: nn.Module, data: str | Path) -> dict[str, float]:
    """Metrics of a network on data, by name, beside those of its baselines where the task has some.

    Args:
        network: one of ``KINDS``, on its device.
        data: large pictures for super-resolution, a CSV file for forecasting, scenes with labels for point clouds.

    Raises MetamixerError as the tasks do.
    """
    if isinstance(network, FFNetSR):
        return asdict(evaluate_folder(network, data))
    if isinstance(network, FFNetTSF):
        return asdict(evaluate_series(network, data))
    if isinstance(network, FFNetPoints):
        metrics, ious = evaluate_scenes(network, data)
        return metrics | {f"iou {name}": iou for name, iou in ious.items()}
    raise MetamixerError(f"{type(network).__name__} is none of {', '.join(kind.__name__ for kind in KINDS)}")
