"""Changes to an exported ONNX graph that leave its function as it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_LARGE = 256  # numbers from which on a constant is worth storing in half precision


def forget_sources(model: Any) -> None:
    """Remove what the exporter notes of source lines of the exporting machine: weight without use in a shared file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")


def name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Give the graph's outputs these names, in their order.

    One that is a constant (anchors of a fixed size), or the same value as another, gets a node of its own.
    """
    made = {output for node in graph.node for output in node.output}
    renamed: dict[str, str] = {}
    copies = []
    for output, name in zip(graph.output, names, strict=True):
        if output.name in made and output.name not in renamed:
            renamed[output.name] = name
        else:
            copies.append(onnx.helper.make_node("Identity", [renamed.get(output.name, output.name)], [name]))
        output.name = name
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    graph.node.extend(copies)


def split_convolutions(graph: Any) -> None:
    """Turn a convolution whose output is only split along its channels into one convolution for every part.

    ONNX Runtime keeps maps in blocks of channels, and must unpack them to split one: query, key and value of the
    additive mixer from three convolutions are ready to be used.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    producers = {name: node for node in graph.node for name in node.output}
    nodes, replaced = [], set()
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "Split" else None
        attributes = {} if source is None else {a.name: onnx.helper.get_attribute_value(a) for a in source.attribute}
        if (
            source is None
            or source.op_type != "Conv"
            or readers[source.output[0]] != 1
            or attributes.get("group", 1) != 1
            or not all(name in constants for name in source.input[1:])
            or [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"] != [1]
        ):
            nodes.append(node)
            continue
        channels = constants[source.input[1]].dims[0]
        ends = np.linspace(0, channels, len(node.output) + 1).astype(int)
        if len(node.input) > 1:
            ends = np.cumsum([0, *numpy_helper.to_array(constants[node.input[1]])])
        for output, (start, end) in zip(node.output, pairwise(ends), strict=True):
            names = []
            for name in source.input[1:]:
                names.append(f"{name}_{start}_{end}")
                part = numpy_helper.to_array(constants[name])[start:end]
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), names[-1]))
            nodes.append(onnx.helper.make_node("Conv", [source.input[0], *names], [output], output, **attributes))
        replaced.add(source.output[0])
    nodes = [node for node in nodes if node.output[0] not in replaced]
    graph.ClearField("node")
    graph.node.extend(nodes)
    _drop_unread(graph)


def in_half_precision(graph: Any) -> None:
    """Store large float32 constants in half precision; a runtime turns them back into float32 when it loads them."""
    casts = []
    for constant in graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT or np.prod(constant.dims) < _LARGE:
            continue
        short = f"{constant.name}_fp16"
        casts.append(onnx.helper.make_node("Cast", [short], [constant.name], short, to=onnx.TensorProto.FLOAT))
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant).astype(np.float16), short))
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)


def in_eight_bits(graph: Any) -> None:
    """Store large batched matrices, the filters' linear maps, as bytes with a scale for every row."""
    readers = []
    for constant in graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT or len(constant.dims) != 3 or np.prod(constant.dims) < _LARGE:
            continue
        values, name = numpy_helper.to_array(constant), constant.name
        scale = np.maximum(np.abs(values).max((0, 2)) / 127, 1e-12).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        constant.CopyFrom(numpy_helper.from_array(np.rint(values / scale[:, None]).astype(np.int8), f"{name}_int8"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        readers.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name, axis=1))
    nodes = [*readers, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)


def drop_zero_points(graph: Any) -> None:
    """Leave out the zero points that are lists of zeros, which is what a missing one means.

    Weights and biases are quantised symmetrically, so theirs are; a bias's is as large as the bias itself.
    """
    zeros = {t.name for t in graph.initializer if t.dims and not numpy_helper.to_array(t).any()}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    _drop_unread(graph)


def shorten_names(graph: Any) -> None:
    """Number all inner values and drop their noted shapes: in a small quantised file names weigh as much as weights."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"{len(names):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    graph.ClearField("value_info")


def _drop_unread(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
