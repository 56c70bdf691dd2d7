"""Prediction and evaluation with the networks that classify no pictures, by the network alone.

:func:`metamixer.predict`, :func:`metamixer.evaluate` and the commands of these names hand such networks on to here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn

from metamixer.data.clouds import Scenes
from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import picture_files
from metamixer.data.time_series import Part
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel
from metamixer.networks import FFNetPoints, FFNetSR, FFNetTSF
from metamixer.printing import complain, say
from metamixer.tasks.forecasting import evaluate_series, forecast
from metamixer.tasks.point_clouds import VIEWS, evaluate_scenes, segment_cloud
from metamixer.tasks.super_resolution import enlarge, evaluate_folder

KINDS = (FFNetSR, FFNetTSF, FFNetPoints)

#: What each further setting is for, in words and by the networks.
_SETTINGS: dict[str, tuple[str, tuple[type[nn.Module], ...]]] = {
    "small": ("super-resolution", (FFNetSR,)),
    "split": ("boxes, masks, class maps and forecasting", (DenseModel, FFNetTSF)),
    "time_column": ("forecasting", (FFNetTSF,)),
    "views": ("point clouds", (FFNetPoints,)),
}


def check_settings(network: nn.Module, **given: Any) -> None:
    """Raise MetamixerError for a setting, neither None nor false, that this kind of network does not use."""
    for name, value in given.items():
        purpose, kinds = _SETTINGS[name]
        if value and not isinstance(network, kinds):
            raise MetamixerError(
                f"{name.replace('_', ' ')} is a setting for {purpose}, not for {type(network).__name__}"
            )


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


def predict_file(
    network: nn.Module, path: str | Path, views: bool = False, time_column: str | None = None
) -> Iterator[tuple[str, Result]]:
    """What a network makes of a file, or one after the other of the pictures or scenes of a folder.

    Args:
        network: one of ``KINDS``, on its device.
        path: pictures for super-resolution, a CSV file for forecasting, scenes for point clouds.
        views: sum the probabilities of ten views of a scene.
        time_column: of a CSV file; by default as the network's file says.

    Yields a name for each result's files, and the result. Raises MetamixerError as the tasks do, when it comes to the
    file in question, and for a setting that the network does not use.
    """
    check_settings(network, views=views, time_column=time_column)
    path = Path(path)
    if isinstance(network, FFNetSR):
        for picture in _files(network, [path]):
            yield picture.stem, enlarge(network, picture)
    elif isinstance(network, FFNetTSF):
        yield path.name.split(".")[0], forecast(network, path, time_column=time_column)
    elif isinstance(network, FFNetPoints):
        scenes = Scenes(path, network.num_classes)
        for i, cloud in enumerate(scenes):
            name = scenes.files[i].stem
            result = segment_cloud(network, cloud, views=VIEWS if views else ())
            yield f"{name}_{i:03}" if len(scenes) > 1 else name, result
    else:
        raise MetamixerError(f"{type(network).__name__} is none of {', '.join(kind.__name__ for kind in KINDS)}")


def predict_one(network: nn.Module, source: Image.Image | str | Path) -> Result:
    """What a network makes of one picture, series or scene.

    Args:
        network: one of ``KINDS``, on its device.
        source: a file as for :func:`predict_file`, or a picture, for super-resolution.

    Raises MetamixerError as :func:`predict_file` does, and where ``source`` holds anything but one.
    """
    if isinstance(source, Image.Image):
        if not isinstance(network, FFNetSR):
            raise MetamixerError(f"{type(network).__name__} reads files, not pictures")
        return enlarge(network, source)
    if isinstance(network, FFNetSR):
        return enlarge(network, source)
    if isinstance(network, FFNetPoints):
        count = len(Scenes(source, network.num_classes))
        if count != 1:
            raise MetamixerError(f"{source} holds {count} scenes, not one; predict_file takes one after the other")
    return next(predict_file(network, source))[1]


def predict_files(
    network: nn.Module, paths: Sequence[Path], out: Path | None, views: bool = False, time_column: str | None = None
) -> int:
    """Predict files and folders, write every result's files into ``out`` and name them; the exit code of a command.

    The folder, made for the first result, gets ``predictions.json`` too. A file that cannot be read is named, and the
    others are predicted all the same. ``views`` and ``time_column`` are as for :func:`predict_file`. Raises
    MetamixerError without ``out``, for a folder without pictures, and for a setting that the network does not use.
    """
    if out is None:
        raise MetamixerError("enlarged pictures, forecasts and labels need a folder: name it with --out")
    check_settings(network, views=views, time_column=time_column)
    if os.path.isfile(out):
        raise MetamixerError(f"{out} is a file where a folder is needed")
    files = _files(network, paths)
    said: list[dict[str, Any]] = []
    failed = 0
    for file in files:
        try:
            for name, result in predict_file(network, file, views, time_column):
                written = result.save(make_folder(out), f"{len(said) + 1:04}_{name}")
                said.append(result.to_dict())
                say(f"{file}: {', '.join(map(str, written))}")
        except MetamixerError as error:
            complain(error)
            failed += 1
    if said:
        with replace_when_done(out / "predictions.json") as temporary:
            temporary.write_text(json.dumps(said, indent=2) + "\n")
    return 1 if failed else 0


def _files(network: nn.Module, paths: Sequence[Path]) -> list[Path]:
    """The paths, for super-resolution with folders as the pictures below them."""
    return picture_files(paths) if isinstance(network, FFNetSR) else list(paths)


def evaluate_data(
    network: nn.Module,
    data: str | Path,
    split: Part | None = None,
    time_column: str | None = None,
    small: str | Path | None = None,
    views: bool = False,
) -> dict[str, float]:
    """Metrics of a network on data, by name, beside those of its baselines where the task has some.

    Args:
        network: one of ``KINDS``, on its device.
        data: large pictures for super-resolution, a CSV file for forecasting, scenes with labels for point clouds.
        split: part of a series, cut as in training; the test part by default.
        time_column: of a CSV file; by default as the network's file says.
        small: folder of the small pictures; by default they are made bicubically.
        views: sum the probabilities of ten views of each scene.

    Raises MetamixerError as the tasks do, and for a setting that the network does not use.
    """
    check_settings(network, split=split, time_column=time_column, small=small, views=views)
    if isinstance(network, FFNetSR):
        return asdict(evaluate_folder(network, data, small))
    if isinstance(network, FFNetTSF):
        return asdict(evaluate_series(network, data, split or "test", time_column=time_column))
    if isinstance(network, FFNetPoints):
        metrics, ious = evaluate_scenes(network, data, views=VIEWS if views else ())
        return metrics | {f"iou {name}": iou for name, iou in ious.items()}
    raise MetamixerError(f"{type(network).__name__} is none of {', '.join(kind.__name__ for kind in KINDS)}")
