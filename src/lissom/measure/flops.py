"""Floating-point operations of one text: counted while it runs, and again from the shapes of the parts.

A product of (m, k) and (k, n) is 2 m k n operations. Both counts take matrix products only: the linear maps, and in
attention queries x keys and weights x values, over whole squares (no discount for causal or padded places).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError, UnsupportedFamily
from lissom.measure.exits import thresholds, words
from lissom.measure.reading import Reading, taken

if TYPE_CHECKING:
    from torch import nn

    from lissom.runtime import Runner, Text

AGREE = 0.02  # the two counts may differ by this share


def flops(runner: Runner, texts: Sequence[Text], counts: Mapping[int, int] | None = None) -> Reading:
    """Operations for one text of the median length of `texts` in this runner's tokens.

    counts: where texts leave early, how many are answered after each number of layers (see `lissom.measure.exits`);
    the operations of each such number are then averaged by it. Without it a text goes through all layers.
    """
    model: Any = getattr(runner, "model", None)
    graph: Any = getattr(runner, "graph", None)
    if model is None and graph is None:
        return taken("flops", None, f"Not taken: the {runner.name} engine shows no operations to count.")
    if not texts:
        return taken("flops", None, "Not taken: there is no text to take a length from.")
    tokens = round(statistics.median(len(one.ids) for one in runner.encode(texts)))
    if not counts:
        return _operations(runner, tokens, None)
    each = {layer: _operations(runner, tokens, layer) for layer in counts}
    missing = next((one for one in each.values() if one.value is None), None)
    if missing is not None:
        return missing
    total, longest = sum(counts.values()), max(counts)
    mean = sum((each[layer].value or 0.0) * count for layer, count in counts.items()) / total
    how = f"Mean by the layers after which texts are answered. {words(counts)} For a text answered after {longest}: "
    return taken("flops", mean, how + each[longest].how, n=total)


def _operations(runner: Any, tokens: int, leave: int | None) -> Reading:
    """For a text of `tokens` tokens that is answered after `leave` layers, None for all."""
    if getattr(runner, "model", None) is not None:
        return model_flops(runner.model, tokens, leave)
    from lissom.measure.graph import graph_flops

    return graph_flops(runner, runner.graph, tokens, leave)


def model_flops(model: nn.Module, tokens: int, leave: int | None = None) -> Reading:
    """Operations for one text of `tokens` tokens. Works on an empty (meta) model, as `plan` has it.

    leave: after how many layers the text is answered, of a model with exits; None for all of them.
    """
    shape = f"one text of {tokens} tokens"
    try:
        total, rest, linear = _run(model, tokens, leave)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, LissomError) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return taken("flops", None, f"Not taken: the model does not run on input_ids of {shape} alone ({first}).")
    names = ", ".join(name for name, _ in rest.most_common(5))
    how = f"Matrix products of {shape} (2 operations a multiply and add), counted by torch's formulas while it ran. "
    how += f"Not counted: {sum(rest.values())} calls of {len(rest)} other operators (most often {names}). "
    try:
        analytic = linear + _attention(model, tokens, leave)
    except UnsupportedFamily:
        return taken("flops", total, how + "No second count: the family is not known.", n=1)
    apart = abs(total - analytic) / max(analytic, 1)
    verdict = "agrees" if apart <= AGREE else "does NOT agree"
    how += f"The count from the shapes of the parts, {analytic:,}, {verdict} ({apart:.1%} apart)."
    return taken("flops", total, how, n=1)


def _run(model: nn.Module, tokens: int, leave: int | None) -> tuple[int, Counter[str], int]:
    """Operations that torch has formulas for, calls of operators without one, and operations of linear modules."""
    import torch

    from lissom.edits import exits_of

    device = next(iter(model.parameters()), torch.empty(0)).device
    seen, counted = _Linears(model), _counting()
    training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, training)
        model.train(False)
        stack.callback(seen.stop)
        # rows leave in inference mode alone; a model without values cannot say which
        stack.enter_context(torch.no_grad() if leave is None else torch.inference_mode())
        stack.enter_context(counted)
        ids = torch.ones((1, tokens), dtype=torch.int64, device=device)
        exits, more = exits_of(model), {}
        if leave is not None and exits is not None:
            more["exit_thresholds"] = torch.from_numpy(thresholds(exits.layers, leave)).to(device)
        model(input_ids=ids, attention_mask=ids, **more)
    return counted.total, counted.calls, seen.total


class _Linears:
    """Adds up 2 x rows x in x out of every linear module that runs, the maps of recurrent ones among them."""

    def __init__(self, model: nn.Module) -> None:
        from torch import nn

        from lissom.anatomy.slot import is_linear

        self.total = 0
        leaves = [one for one in model.modules() if is_linear(one) and not any(map(is_linear, one.children()))]
        self._handles = [one.register_forward_hook(self._add) for one in leaves]
        recurrent = [one for one in model.modules() if isinstance(one, nn.LSTM)]
        self._handles += [one.register_forward_hook(self._add_recurrent) for one in recurrent]

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.total += 2 * inputs[0].numel() * output.shape[-1]

    def _add_recurrent(self, module: nn.LSTM, inputs: tuple[Any, ...], output: Any) -> None:
        tokens = inputs[0].data.shape[0]  # of a packed sequence: (tokens, width)
        maps = [one.numel() for name, one in module.named_parameters() if name.startswith("weight")]
        self.total += 2 * tokens * sum(maps)

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()


def _attention(model: nn.Module, tokens: int, leave: int | None) -> int:
    """Both products of every attention layer, in the order of execution, the first `leave` or all."""
    from lissom.anatomy import dissect

    total = 0
    for stack in dissect(model).stacks:
        blocks = {block.index: block for block in stack.blocks}
        for number in stack.order[:leave]:
            for attention in (blocks[number].attention, blocks[number].cross):
                if attention is not None:
                    total += 4 * tokens * tokens * attention.heads * attention.head_dim
    return total


def _counting() -> Any:
    """A mode that adds up operations by torch's table of formulas, and notes calls of operators that are not in it.

    `FlopCounterMode` reads the same table, but it also follows the modules, and fails where one gets a parameter as
    its input (DeBERTa). Views are not noted.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    formulas = {**flop_registry, **_more_formulas()}

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.total = 0
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            packet = func._overloadpacket
            if packet is torch.ops.aten._local_scalar_dense and args[0].is_meta:
                return 1  # an empty tensor has no values; transformers asks one whether a mask is all ones
            if packet not in formulas:
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            out = func(*args, **kwargs)
            if packet in formulas:
                self.total += int(formulas[packet](*args, **kwargs, out_val=out))
            elif not func.is_view:
                self.calls[packet._qualified_op_name.rpartition("::")[2]] += 1
            return out

    return Counting()


def _more_formulas() -> dict[Any, Any]:
    """What torch's table leaves out: attention and recurrent layers on a CPU, our int8 layers, products of integers."""
    import torch

    import lissom.nn.integer  # noqa: F401 - registers the product

    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        rows, heads, length, width = q.shape
        return int(2 * rows * heads * length * k.shape[-2] * (width + v.shape[-1]))

    def int8(x: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
        return int(2 * x.numel() * out_val.shape[-1])

    def recurrent(x: Any, w: Any, r: Any, *args: Any, **kwargs: Any) -> int:
        return int(2 * x.shape[0] * x.shape[1] * (w.numel() + r.numel()))

    found: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten.mkldnn_rnn_layer: recurrent,
        torch.ops.lissom.integer_product: int8,
    }
    if hasattr(torch.ops.onednn, "qlinear_pointwise"):
        found[torch.ops.onednn.qlinear_pointwise] = int8
    return found
