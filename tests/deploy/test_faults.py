"""Full disks, kills and signals: one sentence, and a whole artefact with its report or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.bench import LatencyReport, command, this_machine
from metamixer.cli import main
from metamixer.deploy import artefact as artefact_module
from metamixer.deploy import export as export_module
from metamixer.deploy.artefact import artefact, scratch_folder
from metamixer.deploy.report import report_path
from metamixer.deploy.targets import TARGETS, target_module
from metamixer.errors import MetamixerError

PICTURES = [Image.effect_noise((50, 40), 80).convert("RGB")]
SMALL = dict(num_classes=3, depths=(1, 1, 1, 1), dims=(16, 16, 32, 64))
SLOW = ("aotinductor",)  # compiles for a minute


@pytest.mark.promise("faults", "an export to a full disk, of every target, is one sentence and leaves no file")
@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TARGETS if name != "web"],
)
def test_full_disk(target: str, small_disk) -> None:
    try:
        target_module(target).check()
    except MetamixerError as error:
        pytest.skip(str(error))
    model = mm.create_model("casvit_nano", **SMALL)
    small_disk.leave(50_000)  # the weights alone are 80,000 numbers
    assert sum(parameter.numel() for parameter in model.parameters()) > 25_000
    path = small_disk.path / f"m{TARGETS[target].suffix}"
    with pytest.raises(MetamixerError, match=rf"{path.name} cannot be written \((No space left|File too large)"):
        mm.export(model, target, path, 48, pictures=PICTURES, repeats=0)
    assert [p.name for p in small_disk.path.iterdir() if p.name != "filling"] == []


def test_a_library_that_hides_the_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ streams say nothing when they cannot write; what fails afterwards is not the cause."""

    def fail(error: Exception) -> None:
        with artefact(tmp_path / "m.ncnn") as temporary:
            temporary.mkdir()
            raise error

    with pytest.raises(ValueError, match="half a file"):
        fail(ValueError("half a file"))
    monkeypatch.setattr(artefact_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(MetamixerError, match=r"m.ncnn cannot be written \(No space left on device\)"):
        fail(ValueError("half a file"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_an_export_replaces_only_files(tmp_path: Path) -> None:
    path = tmp_path / "m.pte"
    for taken in (path, report_path(path)):
        os.mkfifo(taken)
        with pytest.raises(MetamixerError, match=rf"{taken.name} is a pipe, which no file may replace"), artefact(path):
            pytest.fail("the block ran")
        assert taken.is_fifo()
        taken.unlink()


_HALF_WRITTEN = """
import sys, time
from pathlib import Path
from metamixer.deploy.artefact import artefact, scratch_folder
with artefact(Path(sys.argv[1])) as temporary, scratch_folder() as scratch:
    temporary.write_text("half")
    (scratch / "model.onnx").write_text("half")
    print(scratch, flush=True)
    time.sleep(60)
"""


@pytest.mark.promise(
    "kills", "what a killed export or bench left behind, the next one clears; what a living one has, stays"
)
def test_leftovers_of_a_killed_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pte"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def start() -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", _HALF_WRITTEN, path], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert Path(process.stdout.readline().decode().strip()).parent == tmp_path
        return process

    dead = start()
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    with start() as living:
        try:  # which has cleared what the dead one left, and is left alone by this one
            assert len(list(tmp_path.iterdir())) == 2
            with artefact(path) as temporary, scratch_folder() as scratch:
                temporary.write_text("whole")
                assert len(list(tmp_path.iterdir())) == 4
                assert scratch.parent == tmp_path
            assert path.read_text() == "whole"
            assert len(list(tmp_path.iterdir())) == 3
        finally:
            living.kill()


class _Twin:
    """In place of a runtime in another process: PyTorch itself, in this one."""

    load_ms = 1.0
    graph: torch.nn.Module

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> _Twin:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.graph(torch.from_numpy(pictures)).numpy()


def _convert(target, model, example, path, *_) -> str:
    _Twin.graph = model
    path.write_text("a graph")
    return "text"


@pytest.mark.promise(
    "faults", "a signal in the last moment of an export or a bench ends it with a code that is not zero"
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_at_the_end(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what a shell starts in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    (tmp_path / "pictures").mkdir()
    PICTURES[0].save(tmp_path / "pictures" / "a.png")
    monkeypatch.setattr(export_module, "convert", _convert)
    monkeypatch.setattr(export_module, "RuntimeProcess", _Twin)
    monkeypatch.setattr(export_module, "_latencies", lambda *_: (1.0, 1.0))
    out = tmp_path / "exported"
    export = ["export", "casvit_nano.cifar10", "--out", str(out), "--pictures", str(tmp_path / "pictures")]
    assert main(export) == 0
    names = ["casvit_nano.cifar10.onnx", "casvit_nano.cifar10.onnx.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    for name in names:
        (out / name).unlink()
    monkeypatch.setattr(export_module, "report_path", lambda path: os.kill(os.getpid(), number) or report_path(path))
    assert main(export) == code
    assert list(out.iterdir()) == []

    def measured(*_: object) -> LatencyReport:
        os.kill(os.getpid(), number)
        return LatencyReport([], {}, this_machine(), None)

    monkeypatch.setattr(command, "benchmark", measured)
    assert main(["bench", "casvit_nano", "--out", str(tmp_path / "rows.json")]) == code
    assert not (tmp_path / "rows.json").exists()
    assert capsys.readouterr().err.splitlines()[-1] == "metamixer: interrupted"
