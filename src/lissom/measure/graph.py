"""Operations of an ONNX graph: it runs once, and the shapes that its matrix products met are multiplied out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lissom.measure.exits import thresholds
from lissom.measure.reading import Reading, taken

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lissom.runtime import Runner

# Operator -> place of its first and second matrix among the inputs.
PRODUCTS = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulNBits": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "LSTM": (0, 1),
}
HEAVY = {"Conv", "ConvInteger", "QLinearConv", "Einsum", "GRU", "RNN", "If", "Loop", "Scan"}
_LIMIT = 1_500_000_000  # bytes; a graph travels to the engine as one message of at most 2 GB


def graph_flops(runner: Runner, graph: Path, tokens: int, leave: int | None = None) -> Reading:
    """Operations for one text of `tokens` tokens, all equal; the graph as it is written, before the engine fuses it.

    leave: after how many layers the text is answered, of a graph with exits; None for what its default says.
    """
    import onnx

    if sum(file.stat().st_size for file in runner.files) > _LIMIT:
        return taken("flops", None, "Not taken: the graph is larger than 1.5 GB.")
    model = onnx.load(str(graph))
    nodes = list(model.graph.node)
    odd = sorted({node.op_type for node in nodes if _uncounted(node)})
    if odd:
        return taken("flops", None, f"Not taken: no count for {', '.join(odd)} in {graph.name}.")
    products = [node for node in nodes if node.op_type in PRODUCTS]
    chosen = {} if leave is None else {"exit_thresholds": thresholds(runner.exits[:-1], leave)}
    shapes = _shapes(model, products, tokens, chosen)
    total = sum(_operations(node, shapes) for node in products)
    how = f"{len(products)} matrix products of {graph.name} for one text of {tokens} tokens (2 operations a multiply "
    how += f"and add), by the shapes met while it ran. Not counted: {len(nodes) - len(products)} other nodes."
    return taken("flops", total, how, n=1)


def _uncounted(node: Any) -> bool:
    """Whether a node computes much and has no formula here: `com.microsoft.Attention` and other fused operators."""
    if node.op_type in PRODUCTS:
        return False
    return node.op_type in HEAVY or "Attention" in node.op_type or "MatMul" in node.op_type


def _shapes(
    model: Any, products: list[Any], tokens: int, chosen: dict[str, NDArray[np.float32]]
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every matrix that goes into a product. chosen: inputs that need not be given."""
    from onnx import helper

    from lissom.runtime.onnx import open_session

    stored = {one.name: tuple(one.dims) for one in model.graph.initializer}
    inputs = {one.name for one in model.graph.input}
    wanted = dict.fromkeys(node.input[place] for node in products for place in PRODUCTS[node.op_type])
    asked = [name for name in wanted if name not in stored and name not in inputs]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in asked)
    session = open_session(model.SerializeToString(), threads=1)
    ones = np.ones((1, tokens), np.int64)
    feeds = {
        one.name: ones.astype(np.int32 if one.type == "tensor(int32)" else np.int64) for one in session.get_inputs()
    }
    found = zip(asked, session.run(asked, feeds | chosen), strict=True)
    return {**stored, **{name: np.shape(array) for name, array in found}}


def _operations(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    left, right = (shapes[node.input[place]] for place in PRODUCTS[node.op_type])
    if node.op_type == "LSTM":  # (seq, batch, width) and (directions, 4 · units, width); each state is multiplied too
        directions, gates, width = right
        return 2 * left[0] * left[1] * directions * gates * (width + gates // 4)
    turned = {one.name: one.i for one in node.attribute}
    if node.op_type == "MatMulNBits":  # the second is packed; its shape stands in attributes
        right = (turned["K"], turned["N"])
    if turned.get("transA"):
        left = (*left[:-2], left[-1], left[-2])
    if turned.get("transB"):
        right = (*right[:-2], right[-1], right[-2])
    columns = right[-1] if len(right) > 1 else 1
    rows = left[-2] if len(left) > 1 else 1
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return 2 * int(np.prod(batch, dtype=np.int64)) * rows * left[-1] * columns
