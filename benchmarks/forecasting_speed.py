"""How much faster does the forecasting network train than the released code? Interleaved, on the same cores.

    python benchmarks/forecasting_speed.py --ffnet CHECKOUT --etth1 ETTh1.csv --threads 2

needs a checkout of ysj9909/FFNet. Both networks begin with the same weights in the released setting for ETTh1, read the
same batches of 512 windows and take the same Adam steps. First without dropout, where their losses must agree step by
step; then with the released rates, where the times count. Each code has a process of its own, so that neither finds the
memory that the other left behind, and they take their steps in turns. Writes ``forecasting_speed.md`` beside this file.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from argparse import Namespace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from metamixer.bench.machine import this_machine
from metamixer.networks import create_network
from metamixer.networks.forecasting import TwoMixes
from metamixer.ops.allocator import keep_freed_memory
from metamixer.tasks.forecasting import Forecasting
from metamixer.weights.released import to_our_layout

BATCH = 512
KINDS = ("release", "ours")


def released(repository: Path, drop_rate: float) -> nn.Module:
    """The authors' network with the options of ``scripts/ETTh1.sh``."""
    sys.path.insert(0, str(repository / "time_series_forecasting"))
    from models import FFNet  # type: ignore

    return FFNet.Model(
        Namespace(
            stem_ratio=6, downsample_ratio=2, ffn_ratio=2, num_blocks=[1], large_size=[51], small_size=[5],
            dims=[64] * 4, dw_dims=[256] * 4, enc_in=7, small_kernel_merged=False, dropout=drop_rate, head_dropout=0.0,
            use_multi_scale=False, revin=1, affine=0, subtract_last=0, freq="h", seq_len=96, individual=0, pred_len=96,
            kernel_size=25, patch_size=4, patch_stride=2, decomposition=0,
        )
    ).float()  # fmt: skip


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, TwoMixes):
            module.drop_rates = (0.0, 0.0)


def work(kind: str, repository: Path, prepared: Path, drop_rate: float, threads: int, orders: Connection) -> None:
    """In a process of its own: a step on the batch of every number received; loss and both seconds go back."""
    torch.set_num_threads(threads)
    weights, batches = torch.load(prepared)
    model: nn.Module
    if kind == "ours":
        keep_freed_memory()  # as the task does
        model = create_network("ffnet_tsf", drop_rate=drop_rate)
        weights = to_our_layout(weights)
    else:
        model = released(repository, drop_rate)
    model.load_state_dict(weights)
    if not drop_rate:
        without_dropout(model)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for place in iter(orders.recv, None):
        past, future = batches[place]
        started, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = F.mse_loss(model(past), future)
        loss.backward()
        optimizer.step()
        orders.send((loss.item(), time.perf_counter() - started, time.process_time() - processor))


def in_turns(repository: Path, prepared: Path, drop_rate: float, threads: int, steps: int) -> np.ndarray:
    """Losses, seconds and processor seconds of both codes: ``steps × 2 codes × 3``."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for kind in KINDS:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(kind, repository, prepared, drop_rate, threads, theirs))
        process.start()
        workers.append((process, ours))
    rows = []
    for place in range(steps):
        row = []
        for _, orders in workers:
            orders.send(place)
            row.append(orders.recv())
            time.sleep(0.3)  # idle threads of one process spin a while before they sleep
        rows.append(row)
    for process, orders in workers:
        orders.send(None)
        process.join()
    return np.array(rows)


def main(ffnet: Path, etth1: Path, threads: int = 2, compared: int = 5, timed: int = 6) -> None:
    """Compare losses and times and write the table.

    Args:
        ffnet: checkout of the release.
        etth1: the data.
        threads: that PyTorch computes with.
        compared: steps without dropout whose losses are compared.
        timed: steps with dropout that are timed, after two that do not count.
    """
    torch.manual_seed(0)
    task = Forecasting(data=str(etth1))
    task.open()
    order = torch.randperm(len(task)).tolist()
    batches = [
        task.collate([task.sample(i, None) for i in order[n * BATCH : (n + 1) * BATCH]])
        for n in range(max(compared, timed + 2))
    ]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.pt")
        torch.save((released(ffnet, 0.0).state_dict(), batches), prepared)
        losses = in_turns(ffnet, prepared, 0.0, threads, compared)[:, :, 0]
        seconds = in_turns(ffnet, prepared, 0.7, threads, timed + 2)[2:]
    rows = []
    for i, kind in enumerate(KINDS):
        low, median, high = np.quantile(seconds[:, i, 1], [0.25, 0.5, 0.75])
        processor = np.median(seconds[:, i, 2])
        faster = float(np.median(seconds[:, 0, 1])) / median
        rows.append(
            f"| {kind} | {median:.2f} ({low:.2f}–{high:.2f}) | {processor:.2f} | {median * len(task) / BATCH:.0f}"
            f" | {faster:.1f}× |"
        )
    lines = [
        "# Training the forecasting network beside the released code",
        "",
        f"ETTh1, lookback and horizon 96, the released setting; {threads} threads, median (quartiles) of {timed}",
        f"steps of {BATCH} windows, release and ours in turns, each in a process of its own. Only on an otherwise idle",
        "machine do the seconds mean anything: threads that wait for each other suffer from any third one.",
        f"{this_machine()}.",
        "",
        "| code | seconds a step | processor seconds a step | seconds an epoch | faster than the release |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Without dropout the losses of {compared} steps from equal weights differ by at most"
        f" {np.abs(losses[:, 0] - losses[:, 1]).max():.1e}",
        f"(first {losses[0, 0]:.6f} and {losses[0, 1]:.6f}, last {losses[-1, 0]:.6f} and {losses[-1, 1]:.6f}).",
        "",
        f"Made by `python benchmarks/forecasting_speed.py --ffnet … --etth1 … --threads {threads} --compared {compared}"
        f" --timed {timed}`.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
