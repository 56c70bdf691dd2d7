"""ncnn: converted by pnnx from a trace of the captured graph."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, as_list, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require
from metamixer.errors import MetamixerError

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "pnnx keeps one picture of one size"
REFUSES = {
    "dynamic_batch": _FIXED,
    "sizes": _FIXED,
    "int8": "ncnn quantises with ncnn2table and ncnn2int8, which its Python package does not bring along",
}
RUNS_ON = ("ncnn",)
ONE_PICTURE = True


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("ncnn", "ncnn", "pnnx")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write a folder with ``model.param``, ``model.bin`` and ``metadata.json``; blobs ``in0``, and ``out0`` and on.

    With ``fp16`` the weights are stored in half precision. ncnn knows no batches; ``metadata.json`` tells the names and
    shapes of the blobs' values. Raises MetamixerError where pnnx cannot convert the model, or ncnn lacks a layer.
    """
    import pnnx
    import torch

    from metamixer.deploy.graph import capture

    path.mkdir()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, torch.no_grad():
        # A trace of the module itself would compute shapes inside the graph; the captured graph has them as numbers.
        traced = torch.jit.trace(capture(model, example).module(), example, check_trace=False)
        content = io.BytesIO()  # PyTorch's own writing of files ends the process where the disk is full
        torch.jit.save(traced, content)
        Path(folder, "model.pt").write_bytes(content.getbuffer())
        shape = ",".join(map(str, example.shape))
        command = [
            pnnx.EXEC_PATH,
            f"{folder}/model.pt",
            f"inputshape=[{shape}]",
            f"fp16={int(settings.weights == 'fp16')}",
            f"ncnnparam={path / 'model.param'}",
            f"ncnnbin={path / 'model.bin'}",
            *(f"{name}={folder}/{name}" for name in ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnpy")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (path / "model.bin").is_file():
        lines = (done.stderr + done.stdout).strip().splitlines() or ["nothing"]
        raise MetamixerError(f"pnnx failed with exit code {done.returncode}; its last lines: {' | '.join(lines[-3:])}")
    layers = {line.split()[0] for line in (path / "model.param").read_text().splitlines()[2:]}
    if missing := sorted(
        layer for layer in layers if "." in layer or "::" in layer
    ):  # what pnnx left in PyTorch's terms
        raise MetamixerError(f"ncnn has no layer for {', '.join(missing)}")
    with torch.no_grad():
        shapes = [list(output.shape) for output in as_list(model(example))]
    blobs = {
        f"out{i}": {"name": name, "shape": shape}
        for i, (name, shape) in enumerate(zip(settings.outputs, shapes, strict=True))
    }
    (path / "metadata.json").write_text(json.dumps({**settings.metadata, "blobs": blobs}, indent=2) + "\n")
    return "ncnn"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The folder's model as a function from float32 ``1 × C × H × W`` to its outputs, in float32 on the CPU."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    # ncnn computes in half precision where the processor can, unless it is told not to.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(Path(path) / "model.param")) or net.load_model(str(Path(path) / "model.bin")):
        raise MetamixerError(f"{path}: ncnn cannot load it")

    blobs = json.loads((Path(path) / "metadata.json").read_text())["blobs"]

    def run(pictures: np.ndarray) -> Outputs:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(pictures[0]).clone())
        outputs = []
        for blob, about in blobs.items():
            failed, output = extractor.extract(blob)
            if failed:
                raise MetamixerError(f"{path}: ncnn cannot run it")
            outputs.append(np.array(output).reshape(about["shape"]))
        return one_or_all(outputs)

    return run
