"""A reference case as our training runs it: the task collates the samples and calls the head's public class.

Data and backbone alone are stood in for. What the loss is made of is recorded on the way.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo
from torch import Tensor, nn

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference.py"))))

DETECTORS = ("retinanet", "mask_rcnn", "cascade_mask_rcnn", "ssdlite")
#: Strides of the maps, and the arguments that make our head as narrow as the reference.
HEADS: dict[str, tuple[tuple[int, ...], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "retinanet": ((8, 16, 32, 64, 128), lambda said: {"channels": said["channels"]}),
    "mask_rcnn": ((4, 8, 16, 32, 64), lambda said: {"channels": said["channels"], "hidden": said["hidden"]}),
    "cascade_mask_rcnn": ((4, 8, 16, 32, 64), lambda said: {"channels": said["channels"], "hidden": said["hidden"]}),
    "ssdlite": ((16, 32), lambda said: {}),
    "semantic_fpn": ((4, 8, 16, 32), lambda said: {"channels": 16, "head_channels": said["channels"]}),
    "upernet": ((4, 8, 16, 32), lambda said: {"channels": said["channels"]}),
    "ffnet_seg": ((8, 16, 32), lambda said: {"channels": said["channels"]}),
    "deeplabv3": ((16, 16), lambda said: {"channels": said["channels"], "auxiliary": True}),
    "pspnet": ((16, 16), lambda said: {"channels": said["channels"], "auxiliary": True}),
}
CASES = [(name, case) for name in HEADS for case in reference.describe(name)["cases"]]
Call = tuple[tuple[Any, ...], dict[str, Any], Any]


class Maps(nn.Module):
    """Stands in for the backbone: hands over the case's maps, whatever the picture."""

    def __init__(self, maps: list[Tensor], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.given = maps
        info = [
            {"num_chs": one.shape[1], "reduction": stride, "module": str(i)}
            for i, (one, stride) in enumerate(zip(maps, strides, strict=True))
        ]
        self.feature_info = FeatureInfo(info, out_indices=tuple(range(len(maps))))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.given


@dataclass
class Trained:
    """What a step of training made of a case.

    Attributes:
        losses: by our names.
        gradients: of the parameters, by the authors' names; zeros where there is none.
        calls: arguments, keywords and result of every call of a function that the losses are made of, by its name.
        outputs: of the box heads and mask heads, one list each.
        targets: what the task collated.
    """

    name: str
    case: dict[str, Any]
    model: Any
    maps: list[Tensor]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    calls: dict[str, list[Call]]
    outputs: dict[str, list[Any]]
    targets: Any

    def results(self, function: str) -> list[Any]:
        return [result for _, _, result in self.calls[function]]


def train(name: str, case_name: str) -> Trained:
    """Losses and gradients of a case, summed as the reference sums them."""
    said = reference.describe(name)
    case, arrays = said["cases"][case_name], reference.arrays_of(name, case_name)
    if case.get("proposals") and "proposals0" not in arrays:  # the same pictures in another mode
        arrays = reference.arrays_of(name, "padded") | arrays
    maps = reference.feature_maps(case)
    model = _model(name, said, case, maps)
    module = importlib.import_module(f"metamixer.heads.{_home(name)}")
    spied: dict[str, tuple[Any, ...]] = {
        "retinanet": ("assign", "at_least_one_each", "encode_deltas"),
        "mask_rcnn": ("assign", "at_least_one_each", "encode_deltas", "draw", "mask_targets"),
        "ssdlite": ("multibox_targets", "encode_ssd", "counted"),
    }
    with ExitStack() as stack:
        calls = {what: stack.enter_context(_recorded(module, what)) for what in spied.get(_home(name), ())}
        if _home(name) == "mask_rcnn":
            calls["draw_samples"] = stack.enter_context(_recorded(type(model), "draw_samples"))
            calls["propose"] = stack.enter_context(_with_proposals(model, arrays))
        if name not in DETECTORS:
            calls["divisor"] = stack.enter_context(_recorded(type(model), "divisor"))
        outputs = {
            part: [stack.enter_context(_output_of(head)) for head in getattr(model, part, ())]
            for part in ("box_heads", "mask_heads")
        }
        stack.enter_context(reference.deterministic_sampling())
        task = _task(name, said, case, model)
        batch = task.collate(_samples(name, case, arrays))
        losses = task.loss(model, batch)
    left_out = set() if "rpn" in case.get("parts", ["rpn"]) else {"objectness", "proposals"}
    torch.stack([loss for what, loss in losses.items() if what not in left_out]).sum().backward()
    own = dict(model.named_parameters())
    gradients = {
        key: torch.zeros_like(own[ours]) if own[ours].grad is None else own[ours].grad
        for key, ours in _names(name, said).items()
        if ours in own
    }
    return Trained(name, case, model, maps, losses, gradients, calls, outputs, batch[1])


def _home(name: str) -> str:
    """The file of the functions that the losses are made of."""
    return "mask_rcnn" if name == "cascade_mask_rcnn" else name


def _names(name: str, said: dict[str, Any]) -> dict[str, str]:
    """Our names of the weights by the authors'."""
    released = importlib.import_module("metamixer.weights.released_dense")
    layouts = {"deeplabv3": "CVNETS", "pspnet": "CVNETS", "ssdlite": "CVNETS"}
    layout = layouts.get(name, "MMDETECTION" if name in DETECTORS else "MMSEGMENTATION")
    return {key: released.rename(key, getattr(released, layout)) for key in said["state_dict"]}


def _model(name: str, said: dict[str, Any], case: dict[str, Any], maps: list[Tensor]) -> nn.Module:
    strides, arguments = HEADS[name]
    chosen = arguments(said)
    if case.get("avg_non_ignore"):
        chosen["averaged_over"] = "labelled"
    if "iou_threshold" in case and case["iou_threshold"] != 0.45:  # which is the default
        chosen["matched_from"] = case["iou_threshold"]
    model = (
        importlib.import_module("metamixer.heads.build")
        .HEADS[name]
        .model(Maps(maps, strides), said["num_classes"], **chosen)
    )
    if hasattr(model, "neck"):
        model.neck, model.places = nn.Identity(), range(len(maps))
    names = _names(name, said)
    model.load_state_dict({names[key]: tensor for key, tensor in reference.state_dict(name).items()})
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    model.pretrained_cfg = {
        "input_size": (3, 160, 160),
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
    }
    return model


def _task(name: str, said: dict[str, Any], case: dict[str, Any], model: nn.Module) -> Any:
    """The task after ``open`` and ``create_model``, its model being ours."""
    classes = tuple(f"class {i}" for i in range(said["num_classes"]))
    objects = name in DETECTORS
    home = importlib.import_module(f"metamixer.tasks.{'detection' if objects else 'segmentation'}")
    opener = "open_objects_to_train" if objects else "open_class_maps_to_train"
    data = home.ObjectSet([], classes) if objects else home.ClassMaps([], classes)
    settings: dict[str, Any] = {"data": "a folder", "head": name}
    if case.get("class_weight"):
        settings["class_weights"] = tuple(case["class_weight"])
    task = (home.Detection if objects else home.SemanticSegmentation)(**settings)
    with mock.patch.object(home, opener, return_value=(data, data)), mock.patch.object(home, "build") as build:
        build.return_value = model
        task.open()
        task.create_model()
    model.train(case["mode"] == "train")
    return task


def _samples(name: str, case: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[Any]:
    """What the task's ``sample`` gives: pictures of their own size, and what they show."""
    if name not in DETECTORS:
        labels = torch.from_numpy(reference.shared_array(name, case["labels"])).long()
        return [(torch.zeros(3, *one.shape, dtype=torch.uint8), one) for one in labels]
    samples = []
    for i, picture in enumerate(case["pictures"]):
        height, width = picture.get("img_shape") or case["input_shape"][-2:]
        sample = {
            "picture": torch.zeros(3, height, width, dtype=torch.uint8),
            "boxes": torch.tensor(picture["gt_bboxes"], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(picture["gt_labels"], dtype=torch.int64),
            "size": torch.tensor([height, width]),
        }
        if _home(name) == "mask_rcnn":
            masks = torch.from_numpy(arrays.get(f"gt_masks{i}", np.zeros((0, height, width), np.uint8)))
            assert not masks[:, height:].any()
            assert not masks[:, :, width:].any()
            sample["masks"] = masks[:, :height, :width]
        samples.append(sample)
    return samples


@contextmanager
def _recorded(owner: Any, name: str) -> Iterator[list[Call]]:
    """Calls of a function or method while the context lasts."""
    calls: list[Call] = []
    own = getattr(owner, name)

    def recorder(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    with mock.patch.object(owner, name, recorder):
        yield calls


@contextmanager
def _with_proposals(model: Any, arrays: dict[str, np.ndarray]) -> Iterator[list[Call]]:
    """The second step gets the reference's proposals, as it did; ours are recorded beside them.

    Where the case has no proposals of its own they are the first step's, in the reference's order: neighbours of nearly
    the same score may change places.
    """
    calls: list[Call] = []
    own = model.propose

    def propose(*args: Any) -> Any:
        found = own(*args)
        calls.append((args, {}, found))
        return [(torch.from_numpy(arrays[f"proposals{i}"]), scores) for i, (_, scores) in enumerate(found)]

    with mock.patch.object(model, "propose", propose):
        yield calls


@contextmanager
def _output_of(head: nn.Module) -> Iterator[list[Any]]:
    outputs: list[Any] = []
    handle = head.register_forward_hook(lambda module, args, output: outputs.append(output))
    yield outputs
    handle.remove()
