"""What we change in the graph that torch writes: how int8 layers look in it, and what makes it small and fast."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper
from onnx_ir.passes import common as common_passes
from onnxscript import opset20 as op
from onnxscript import optimizer
from onnxscript.values import Op, Opset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ANY = 2**31  # no limit: the whole graph is smaller
OPSET = 20  # the first with Gelu; every ONNX Runtime since 1.17 reads it


def _int8_product() -> Op:
    """ONNX Runtime's MatMulIntegerToFloat: (a - a_zero) · b · a_scale · b_scale + bias, for a uint8 and b int8."""
    one = onnx.defs.OpSchema.FormalParameterOption.Single
    maybe = onnx.defs.OpSchema.FormalParameterOption.Optional
    inputs = (
        ("A", "tensor(uint8)", one),
        ("B", "tensor(int8)", one),
        ("a_scale", "tensor(float)", one),
        ("b_scale", "tensor(float)", one),
        ("a_zero_point", "tensor(uint8)", maybe),
        ("b_zero_point", "tensor(int8)", maybe),
        ("bias", "tensor(float)", maybe),
    )
    schema = onnx.defs.OpSchema(
        "MatMulIntegerToFloat",
        "com.microsoft",
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter(name, kind, param_option=how) for name, kind, how in inputs],
        outputs=[onnx.defs.OpSchema.FormalParameter("Y", "tensor(float)")],
    )
    return Op(Opset(schema.domain, 1), schema.name, schema)


_INT8_PRODUCT = _int8_product()


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the operators of `lissom.nn` become ONNX operators, for torch.onnx.export."""
    return {
        torch.ops.lissom.int8_linear.default: _int8_linear,
        torch.ops.lissom.token_int8_linear.default: _token_int8_linear,
        torch.ops.lissom.static_int8_linear.default: _static_int8_linear,
        torch.ops.lissom.integer_product.default: _integer_product,
        torch.ops.lissom.bilstm.default: _bilstm,
    }


def _bilstm(x: Any, lengths: Any, w: Any, r: Any, b: Any) -> Any:
    units = r.shape[-1]
    turned = op.Transpose(x, perm=[1, 0, 2])  # (seq, batch, width)
    counts: Any = op.Cast(lengths, to=ir.DataType.INT32)
    _, states, _ = op.LSTM(turned, w, r, b, counts, direction="bidirectional", hidden_size=units)
    return op.Transpose(states, perm=[1, 0, 2])  # (batch, 2, units)


def _int8_linear(x: Any, weight: Any, weight_scale: Any, bias: Any) -> Any:
    # In this form ONNX Runtime fuses it into DynamicQuantizeMatMul, or, where several layers read the same input,
    # quantizes that once and runs MatMulIntegerToFloat.
    codes, scale, zero = op.DynamicQuantizeLinear(x)
    product = op.Cast(op.MatMulInteger(codes, op.Transpose(weight, perm=[1, 0]), zero), to=ir.DataType.FLOAT)
    y = op.Mul(product, op.Mul(scale, weight_scale))
    return y if bias is None else op.Add(y, bias)


def _token_int8_linear(x: Any, weight: Any, weight_scale: Any, bias: Any) -> Any:
    # Codes without sign, 128 for zero: ONNX Runtime 1.32 multiplies signed ones 14 times as slowly. Factors come one
    # after the other, because it fuses Mul(scale, weight_scale) into an operator for one scale a tensor.
    last: Any = [-1]
    middle: Any = 128.0
    largest = op.ReduceMax(op.Abs(x), last, keepdims=1)
    scale = op.Max(op.Div(largest, 127.0), torch.finfo(torch.float32).tiny)
    codes: Any = op.Cast(op.Add(op.Round(op.Div(x, scale)), middle), to=ir.DataType.UINT8)
    zero: Any = op.Cast(middle, to=ir.DataType.UINT8)
    product = op.Cast(op.MatMulInteger(codes, op.Transpose(weight, perm=[1, 0]), zero), to=ir.DataType.FLOAT)
    y = op.Mul(op.Mul(product, weight_scale), scale)
    return y if bias is None else op.Add(y, bias)


def _static_int8_linear(  # noqa: PLR0917 - torch.onnx gives the parts of an operator by position
    x: Any, weight: Any, weight_scale: Any, bias: Any, input_scale: Any, input_zero: Any
) -> Any:
    # One product with its bias, an operator of ONNX Runtime that OpenVINO reads as well. Of the standard form, products
    # of decoded codes, ONNX Runtime makes the same operator, but leaves the bias outside, and the sum with it takes as
    # long as the quantizing. Maps that read one input share its scale, so that it is quantized once.
    codes = op.QuantizeLinear(x, input_scale, input_zero)
    turned = op.Transpose(weight, perm=[1, 0])
    return _INT8_PRODUCT(codes, turned, input_scale, weight_scale, input_zero, None, bias)


def _integer_product(a: Any, b: Any) -> Any:
    return op.Cast(op.MatMulInteger(a, b), to=ir.DataType.INT64)


def unrounded(file: bytes) -> bytes | None:
    """The same graph with the activations of int8 layers left as they come; None when it has no such layers."""
    model = onnx.load_from_string(file)
    nodes: list[onnx.NodeProto] = []
    if not any(node.op_type in {"QuantizeLinear", "MatMulInteger"} for node in model.graph.node):
        return None
    tokens = _token_codes(model.graph)
    for node in model.graph.node:
        if tokens.intersection(node.output):
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
        elif node.op_type == "DynamicQuantizeLinear":
            codes, scale, _ = node.output
            nodes.append(helper.make_node("Identity", node.input, [codes]))
            nodes.append(helper.make_node("Constant", [], [scale], value_float=1.0))
        elif node.op_type == "QuantizeLinear":
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
        elif node.op_type == "MatMulIntegerToFloat":
            nodes.extend(_in_float(node))
        elif node.op_type == "MatMulInteger":
            left, right = node.input[:2]
            cast = f"{node.output[0]}_weight"
            nodes.append(helper.make_node("Cast", [right], [cast], to=onnx.TensorProto.FLOAT))
            nodes.append(helper.make_node("MatMul", [left, cast], node.output))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def _token_codes(graph: onnx.GraphProto) -> set[str]:
    """What the steps of rounding with one scale a token give: Round, Add 128, Cast."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    for node in graph.node:
        steps = []
        name = node.input[0] if node.op_type == "MatMulInteger" else ""
        for kind in ("Cast", "Add", "Round"):
            made = makers.get(name)
            if made is None or made.op_type != kind:
                break
            steps.append(name)
            name = made.input[0]
        else:
            found.update(steps)
    return found


def _in_float(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What a MatMulIntegerToFloat computes when its first input is not codes but what they stand for."""
    (x, codes, _, scale), bias = node.input[:4], node.input[6:]
    made, out = node.output[0], node.output
    nodes = [
        helper.make_node("Cast", [codes], [f"{made}_codes"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{made}_codes", scale], [f"{made}_weight"]),
        helper.make_node("MatMul", [x, f"{made}_weight"], [f"{made}_product"] if bias else out),
    ]
    return [*nodes, helper.make_node("Add", [f"{made}_product", *bias], out)] if bias else nodes


def polish(model: ir.Model) -> bytes:
    """The file: axes named, each tensor once, nothing of the machine that wrote it."""
    _fold_recurrent(model)
    _name_axes(model.graph)
    _keep_sums_apart(model.graph)
    _store_once(model.graph)
    _multiply_once(model.graph)
    _strip(model)
    model.producer_name, model.producer_version = "lissom", None
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def with_defaults(file: bytes, settings: Mapping[str, torch.Tensor]) -> bytes:
    """The same graph, in which a caller may leave out the inputs `settings`: each then has the value given here."""
    if not settings:
        return file
    model = onnx.load_from_string(file)
    for name, value in settings.items():
        model.graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
    data: bytes = model.SerializeToString()
    return data


def _fold_recurrent(model: ir.Model) -> None:
    """Compute the weights of LSTM layers now, which are laid out otherwise in torch: by itself the exporter's own
    folding leaves large tensors alone."""
    if any(node.op_type == "LSTM" for node in model.graph):
        optimizer.fold_constants(model, input_size_limit=_ANY, output_size_limit=_ANY)
        common_passes.RemoveUnusedNodesPass()(model)


def _name_axes(graph: ir.Graph) -> None:
    """Call the free axes "batch" and "sequence", in inputs and outputs."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, name in zip(value.shape or (), ("batch", "sequence"), strict=False):
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                names.setdefault(axis.value, name)
    for value in (*graph.inputs, *graph.outputs):
        axes = [axis.value if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape or ()]
        value.shape = ir.Shape([names.get(axis, axis) if isinstance(axis, str) else axis for axis in axes])


def _keep_sums_apart(graph: ir.Graph) -> None:
    """Write the residual sum before a layer norm as Sum, not Add.

    Else ONNX Runtime fuses both into SkipLayerNormalization, whose CPU kernel takes 5 times as long as the two (1.32):
    MiniLM-L6 with int8 layers ran 499 short texts a second fused and 545 unfused.
    """
    for node in graph:
        summed = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
        if summed is not None and summed.op_type == "Add" and not summed.domain:
            summed.op_type = "Sum"


def _store_once(graph: ir.Graph) -> None:
    """Let all users of equal tensors read one of them: layers that share weights are stored once."""
    seen: dict[tuple[Any, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < 1024:
            continue
        key = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
        first = seen.setdefault(key, value)
        if first is not value and not value.is_graph_output():
            value.replace_all_uses_with(first)
            del graph.initializers[name]


def _multiply_once(graph: ir.Graph) -> None:
    """Let maps that multiply one input by the same stored factors share the product, and with it its rounding."""
    seen: dict[tuple[Any, ...], ir.Value] = {}
    factors: dict[str, Any] = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None and len(value.const_value.shape) == 1:
            tensor = value.const_value
            factors[name] = (tensor.dtype, hashlib.sha256(tensor.tobytes()).digest())
    for node in list(graph):
        if node.op_type != "Mul" or node.inputs[1] is None or node.inputs[1].name not in factors:
            continue
        product = node.outputs[0]
        first = seen.setdefault((node.inputs[0], *factors[node.inputs[1].name]), product)
        if first is not product and not product.is_graph_output():
            product.replace_all_uses_with(first)
            graph.remove(node, safe=True)


def _strip(model: ir.Model) -> None:
    """Remove notes about the source code, which carry local paths, and the shapes in between, which readers infer."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = None
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
