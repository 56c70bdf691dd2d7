"""Fold batch norms into the convolutions before them, in networks that do not know how to do it themselves."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Fold, in place, every batch norm that alone reads a convolution's output. Exact up to rounding.

    A norm that carries an activation (timm's ``BatchNormAct2d``) leaves the activation behind. Where ``torch.fx``
    cannot trace a model, its parts are tried one by one.

    Args:
        model: in evaluation mode.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may raise anything
        for part in model.children():
            fold_norms(part)
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = next(iter(node.all_input_nodes), None)
        if source is None or {node.op, source.op} != {"call_module"} or len(source.users) > 1:
            continue
        conv, norm = model.get_submodule(source.target), model.get_submodule(node.target)
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats):
            continue
        if calls[source.target] == calls[node.target] == 1:
            model.set_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            left = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
            model.set_submodule(node.target, nn.Sequential(*left) if left else nn.Identity())
