"""The choice among boxes at the end of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

CANDIDATES = ("boxes", "scores")  # outputs of the graph before


def append_selection(graph: Any, overlap: float, score_threshold: float, limit: int) -> None:
    """Non-maximum suppression behind the outputs ``boxes`` ``1 × N × 4`` and ``scores`` ``1 × classes × N``.

    Within each class a box goes where it overlaps a better one by more than ``overlap``; of all boxes that score above
    the threshold the ``limit`` best stay, cut at the edges of the graph's input. The graph then gives ``boxes``
    ``K × 4``, ``scores`` ``K`` and ``labels`` ``K`` (int64), the surest first.
    """
    height, width = (side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[2:])
    inner = {name: f"all_{name}" for name in CANDIDATES}
    for node in graph.node:
        node.input[:] = [inner.get(value, value) for value in node.input]
        node.output[:] = [inner.get(value, value) for value in node.output]
    constants = {
        "nms_most": np.int64(np.iinfo(np.int32).max),  # of each class; the limit is on all together
        "nms_overlap": np.float32(overlap),
        "nms_score": np.float32(score_threshold),
        "nms_limit": np.array([limit]),
        "nms_first": np.array([0]),
        "nms_class": np.int64(1),
        "nms_place": np.array([1, 2]),
        "nms_box": np.int64(2),
        "nms_origin": np.float32(0),
        "nms_edges": np.array([width, height, width, height], np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.node.extend(
        helper.make_node(kind, inputs, outputs, **attributes)
        for kind, inputs, outputs, attributes in (
            (
                "NonMaxSuppression",
                ["all_boxes", "all_scores", "nms_most", "nms_overlap", "nms_score"],
                ["nms_kept"],  # K × 3: picture, class, box
                {},
            ),
            ("Squeeze", ["all_boxes", "nms_first"], ["nms_boxes"], {}),
            ("Squeeze", ["all_scores", "nms_first"], ["nms_scores"], {}),
            ("Gather", ["nms_kept", "nms_place"], ["nms_pairs"], {"axis": 1}),
            ("GatherND", ["nms_scores", "nms_pairs"], ["nms_kept_scores"], {}),
            ("Shape", ["nms_kept_scores"], ["nms_count"], {}),
            ("Min", ["nms_count", "nms_limit"], ["nms_k"], {}),
            ("TopK", ["nms_kept_scores", "nms_k"], ["scores", "nms_order"], {"axis": 0}),
            ("Gather", ["nms_kept", "nms_class"], ["nms_labels"], {"axis": 1}),
            ("Gather", ["nms_labels", "nms_order"], ["labels"], {}),
            ("Gather", ["nms_kept", "nms_box"], ["nms_places"], {"axis": 1}),
            ("Gather", ["nms_places", "nms_order"], ["nms_chosen"], {}),
            ("Gather", ["nms_boxes", "nms_chosen"], ["nms_uncut"], {}),
            ("Max", ["nms_uncut", "nms_origin"], ["nms_inside"], {}),
            ("Min", ["nms_inside", "nms_edges"], ["boxes"], {}),
        )
    )
    graph.ClearField("output")
    graph.output.extend(
        (
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["objects", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["objects"]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["objects"]),
        )
    )
    for value in list(graph.value_info):
        if value.name in inner:
            value.name = inner[value.name]
