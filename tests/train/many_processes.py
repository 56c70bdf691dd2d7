"""Runs trainings in one, two or three processes on the CPU (gloo), for test_distributed.py.

A process that imports everything once and then reads requests, a JSON object a line: how many processes to fork, and
what each of them does in turn. ``DATA``, the first argument, is what every_task.py wrote. What the processes found out
lies in ``OUT/found.PROCESS.json``; the answer, a line too, holds their exit codes and what they said.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metamixer as mm
from metamixer.errors import MetamixerError
from metamixer.tasks import point_clouds, sharing
from metamixer.tasks.task import Task
from metamixer.train import distributed
from metamixer.train.interruption import TrainingInterruptedError
from metamixer.train.run import Run

LONGEST = 240  # seconds for a request, on a machine that has much else to do; a hang ends here

every_task = runpy.run_path(str(Path(__file__).with_name("every_task.py")))


# --- What a process can be told to do --------------------------------------------------------------------------------


def train(data: Path, out: Path, process: int, task: str, run: str, **how: Any) -> dict[str, Any]:
    """A training: its exit code, losses, batches' shapes, and its state whenever it is saved.

    ``changes`` are settings of the loop; ``still`` takes out of a classifier's training all in which several processes
    differ from one, what is drawn in the loop and what batch norms learn; ``signal_at`` is the step after which the
    second process gets SIGTERM; ``fault`` is one of ``FAULTS``, of the second process.
    """
    config = every_task["config"](task, data, out / run, **how.get("changes", {}))
    shapes: list[list[int]] = []
    if how.get("still"):
        config = replace(config, task=replace(config.task, mixup=0.0, cutmix=0.0, drop_path_rate=0.0))
        freeze(config.task)
    watch_shapes(config.task, shapes)
    if how.get("fault") and process == 1:
        FAULTS[how["fault"]](config.task)
    found: dict[str, Any] = {"losses": [], "shapes": shapes, "states": [], "code": 0, "said": ""}

    def on_step(step: mm.train.Step) -> None:
        found["losses"].append(step.losses)
        if process == 1 and step.number == how.get("signal_at"):  # the scheduler asks one process alone
            os.kill(os.getpid(), signal.SIGTERM)

    save = Run.save

    def noting_save(self: Run) -> None:
        save(self)
        averages = self.ema.module if self.ema else self.plain
        found["states"].append([digest(self.plain), digest(averages), self.progress.step])

    Run.save = noting_save  # type: ignore[method-assign]
    try:
        found["metrics"] = mm.train(config, on_step).metrics
    except TrainingInterruptedError as interrupted:
        found |= {"code": interrupted.exit_code, "said": str(interrupted)}
    except MetamixerError as error:
        found |= {"code": 1, "said": str(error)}
    finally:
        Run.save = save  # type: ignore[method-assign]
    return found


def evaluate(data: Path, out: Path, process: int, tasks: list[str]) -> dict[str, Any]:
    """The metrics of a network with the weights of a seed, and how many samples this process looked at."""
    looked_at: list[int] = []
    in_turn = sharing.shared

    def counting(count: int, work: Callable[[range], Any], share: bool = True) -> Any:
        def counted(indices: range) -> Any:
            looked_at.extend(indices)
            return work(indices)

        return in_turn(count, counted, share)

    for name, module in list(sys.modules.items()):
        if name.startswith("metamixer.tasks.") and getattr(module, "shared", None) is in_turn:
            module.shared = counting  # type: ignore[attr-defined]
    found = {}
    for name in tasks:
        config = every_task["config"](name, data, out)
        distributed.start(config)
        torch.manual_seed(1)
        looked_at.clear()
        config.task.workers = 0
        config.task.open()
        model = config.task.create_model()
        metrics = config.task.evaluate(model, torch.device("cpu"))
        found[name] = {"metrics": metrics, "looked_at": list(looked_at)}
    return found


def digest(model: nn.Module) -> str:
    """Of weights and buffers."""
    sums = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sums.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sums.hexdigest()


def watch_shapes(task: Task, shapes: list[list[int]]) -> None:
    loss = task.loss

    def noting_loss(model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor):
            shapes.append(list(batch[0].shape))
        return loss(model, batch)

    task.loss = noting_loss  # type: ignore[method-assign]


def freeze(task: Task) -> None:
    """Batch norms keep statistics taken beforehand: PyTorch cannot synchronise them on CPUs, and processes with a part
    of a batch each would see other statistics than one."""
    create = task.create_model

    def create_model() -> nn.Module:
        model = create()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.momentum = 1.0
        with torch.no_grad():  # of noise, in which a signal keeps its strength from layer to layer
            model.train()(torch.randn(16, 3, 32, 32))
        for module in norms:
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
            module.training = False
        return model

    task.create_model = create_model  # type: ignore[method-assign]


# --- What can be wrong in one process alone --------------------------------------------------------------------------


def failing(method: str, calls: int = 0) -> Callable[[Task], None]:
    """A method of the task raises after so many calls."""

    def break_it(task: Task) -> None:
        good, made = getattr(task, method), [0]

        def bad(*arguments: Any) -> Any:
            made[0] += 1
            if made[0] > calls:
                raise MetamixerError(f"{method} failed here")
            return good(*arguments)

        setattr(task, method, bad)

    return break_it


def unreadable_validation(task: Any) -> None:
    """The last picture, which is the share of the second of two processes or the first of three."""
    opened = task.open

    def open_and_break() -> None:
        opened()
        read = task.validation.read

        def bad_read(index: int) -> Any:
            if index == 1:
                raise MetamixerError("picture 1 cannot be read")
            return read(index)

        task.validation.read = bad_read

    task.open = open_and_break


def other_names(step: int) -> Callable[[Task], None]:
    """From a step on the loss has one part fewer."""

    def break_it(task: Task) -> None:
        loss, calls = task.loss, [0]

        def odd_loss(model: nn.Module, batch: Any) -> Any:
            calls[0] += 1
            parts = loss(model, batch)
            assert isinstance(parts, dict)
            return {"cross_entropy": sum(parts.values())} if calls[0] >= step else parts

        task.loss = odd_loss  # type: ignore[method-assign]

    return break_it


def unlabelled(task: Any) -> None:
    """Its crops hold no labelled point."""
    sample = task.sample

    def without_labels(index: int, size: int | None) -> Any:
        made = sample(index, size)
        return made | {"segment": torch.full_like(made["segment"], point_clouds.IGNORED)}

    task.sample = without_labels


FAULTS: dict[str, Callable[[Any], None]] = {
    "open": failing("open"),
    "sample": failing("sample", calls=8),
    "validation": unreadable_validation,
    "names at once": other_names(1),
    "names later": other_names(3),
    "unlabelled": unlabelled,
}


# --- The processes ---------------------------------------------------------------------------------------------------


def work(request: dict[str, Any], data: Path, process: int, port: int) -> int:
    """What a fork does; its exit code is the last training's."""
    torch.set_num_threads(1)
    out, processes = Path(request["out"]), request["processes"]
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes > 1:  # as torchrun tells them
        os.environ |= {
            "RANK": str(process),
            "LOCAL_RANK": str(process),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    found = []
    for job in request["jobs"]:
        kind = {"train": train, "evaluate": evaluate}[job.pop("do")]
        found.append(kind(data, out, process, **job))
    (out / f"found.{process}.json").write_text(json.dumps(found))
    return int(found[-1].get("code", 0))


def answer(request: dict[str, Any], data: Path) -> dict[str, Any]:
    """Fork the processes and wait for them."""
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for process in range(request["processes"]):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                said = os.open(out / f"said.{process}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                code = work(request, data, process, port)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes: dict[int, int] = {}
    end = time.monotonic() + LONGEST
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    said = [(out / f"said.{process}.txt").read_text() for process in range(request["processes"])]
    return {"codes": [codes[child] for child in children], "said": said}


def main(data: Path) -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), data)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
