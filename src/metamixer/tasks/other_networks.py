"""Prediction and evaluation with the networks that classify no pictures, by the network alone.

:func:`metamixer.predict`, :func:`metamixer.evaluate` and the commands of these names hand such networks on to here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn

from metamixer.data.clouds import Scenes
from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import picture_files
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
        for picture in _files(network, [path]):
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


def predict_files(network: nn.Module, paths: Sequence[Path], out: Path | None) -> int:
    """Predict files and folders, write every result's files into ``out`` and name them; the exit code of a command.

    The folder gets ``predictions.json`` too. A file that cannot be read is named, and the others are predicted all the
    same. Raises MetamixerError without ``out``, and for a folder without pictures.
    """
    if out is None:
        raise MetamixerError("enlarged pictures, forecasts and labels need a folder: name it with --out")
    files, folder = _files(network, paths), make_folder(out)
    said: list[dict[str, Any]] = []
    failed = 0
    for file in files:
        try:
            for name, result in predict_file(network, file):
                written = result.save(folder, f"{len(said) + 1:04}_{name}")
                said.append(result.to_dict())
                print(f"{file}: {', '.join(map(str, written))}")
        except MetamixerError as error:
            print(f"metamixer: {error}", file=sys.stderr)
            failed += 1
    with replace_when_done(folder / "predictions.json") as temporary:
        temporary.write_text(json.dumps(said, indent=2) + "\n")
    return 1 if failed else 0


def _files(network: nn.Module, paths: Sequence[Path]) -> list[Path]:
    """The paths, for super-resolution with folders as the pictures below them."""
    return picture_files(paths) if isinstance(network, FFNetSR) else list(paths)


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
