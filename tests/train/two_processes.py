"""Run by test_distributed.py: the same training in one process and in two, on the CPU with gloo.

Arguments: the folder of pictures, the folder for the runs. Each run's losses, and the sizes of each process's batches,
end up in ``NAME.PROCESS.json``. The processes are forks of this one, which has imported everything.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import metamixer as mm
from metamixer.tasks.classification import Classification
from metamixer.train.interruption import TrainingInterruptedError


class Frozen(Classification):
    """Batch norms keep statistics taken beforehand: PyTorch cannot synchronise them on CPUs, and two
    processes with half a batch each would see other statistics than one."""

    shapes: list[tuple[int, ...]]

    def create_model(self) -> nn.Module:
        model = super().create_model()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.momentum = 1.0
        with torch.no_grad():  # of noise, in which a signal keeps its strength from layer to layer
            model.train()(torch.randn(16, 3, 32, 32))
        for module in norms:
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
            module.training = False
        self.shapes = []
        return model

    def loss(self, model: nn.Module, batch: Any) -> Any:
        self.shapes.append(tuple(batch[0].shape))
        return super().loss(model, batch)


def train(config: mm.TrainConfig, name: str, process: int, interrupt_at: int) -> int:
    torch.set_num_threads(1)
    losses: list[float] = []

    def on_step(step: mm.train.Step) -> None:
        losses.append(sum(step.losses.values()))
        if process == 1 and step.number == interrupt_at:  # the scheduler asks one process alone
            os.kill(os.getpid(), signal.SIGTERM)

    code = 0
    try:
        mm.train(config, on_step)
    except TrainingInterruptedError as interrupted:
        code = interrupted.exit_code
    except mm.MetamixerError as error:
        print(f"{name}, process {process}: {error}", file=sys.stderr)
        code = 1
    found = {"losses": losses, "shapes": getattr(config.task, "shapes", [])}
    Path(f"{Path(config.out or '').parent / name}.{process}.json").write_text(json.dumps(found))
    return code


def run(config: mm.TrainConfig, name: str, processes: int, interrupt_at: int = 0) -> list[int]:
    """The exit codes of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            os.environ["ACCELERATE_USE_CPU"] = "true"
            if processes > 1:
                os.environ |= {
                    "RANK": str(process),
                    "LOCAL_RANK": str(process),
                    "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            code = 99
            try:
                code = train(config, name, process, interrupt_at)
            except BaseException as error:
                print(f"{name}, process {process}: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(pictures: str, out: Path) -> None:
    task = Frozen(
        "metaformer_nano",
        pictures,
        image_size=32,
        model_args=("depths=(1,1,1,1)", "dims=(8,16,24,32)"),
        policy="rand",
    )
    config = mm.TrainConfig(task, epochs=4, batch_size=8, workers=0)
    scales = replace(config, epochs=8, batch_size=4, sizes=(32, 16))

    def at(config: mm.TrainConfig, name: str, **changes: Any) -> mm.TrainConfig:
        return replace(config, out=str(out / name), **changes)

    codes = {
        "one": run(at(config, "one"), "one", 1),
        "two": run(at(config, "two", accumulate=2), "two", 2),
        "scales_one": run(at(scales, "scales_one"), "scales_one", 1),
        "scales_two": run(at(scales, "scales_two"), "scales_two", 2),
        "interrupted": run(at(config, "interrupted"), "interrupted", 2, interrupt_at=5),
        "resumed": run(at(config, "interrupted", resume="auto"), "resumed", 2),
        "too_many": run(at(config, "too_many", accumulate=25), "too_many", 2),
    }
    print(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
