"""ONNX: one graph with dynamic batch and length, in a folder as transformers.js and ONNX Runtime read it.

    config.json  tokenizer files  onnx/model.onnx | onnx/model_quantized.onnx  lissom.json

A model with int8 layers gives `model_quantized.onnx`, which holds the same int8 codes and scales and runs them by
DynamicQuantizeLinear and MatMulInteger, or, where the scales of inputs are fixed, by QuantizeLinear and ONNX Runtime's
own MatMulIntegerToFloat, which OpenVINO reads as well; other models give `model.onnx` in float32. Layers of fewer bits
are written as the int8 ones that they unpack to, or in float32 where their inputs are not rounded; layers whose bits
come in groups keep them, in ONNX Runtime's own MatMulNBits (`lissom.export.grouped`). All else is standard, opset 20.
Encoders with any of the usual heads, and decoders as a whole text at once (no cache: for scoring and classifying, not
for generating). Inputs: `input_ids`, `attention_mask` and what else the tokenizer gives. Outputs: `logits`;
`start_logits` and `end_logits`; or `last_hidden_state`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissom.anatomy import positions, sentence_of
from lissom.errors import LissomError
from lissom.export import exits, graph, parity
from lissom.export.grouped import IN_GRAPHS, to_blocks
from lissom.files import write_json, write_sentence
from lissom.nn import Int8Embedding, Int8Linear
from lissom.nn.levels import ATTENTION
from lissom.nn.low_bit import unpack
from lissom.nn.shared import once
from lissom.store.config import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ANSWERS = (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",))
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LARGEST = 2**31  # bytes of one protobuf
_OTHER_HEAD = "Run it with torch, or export another head of this model."


class Forward(nn.Module):
    """A transformers model as a plain function from the inputs, by position, to a tuple of its answers.

    inputs, outputs: their names, in order.
    settings: further arguments that a graph takes and a caller may leave out, with what they are then.
    """

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs: tuple[str, ...] = ()
        self.settings = exits.settings(model)
        cached = "use_cache" in inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if cached else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """tensors: int64 (batch, sequence) each, in the order of `inputs`; then `settings`, if they are given.

        Returns those of `outputs`.
        """
        named = dict(zip((*self.inputs, *self.settings), tensors, strict=False))
        found = self.model(**named, **self._options, return_dict=True)
        return tuple(found[name] for name in self.outputs)

    def name_outputs(self, batch: dict[str, Tensor]) -> None:
        """Find out which answers the model gives. Raises LissomError LSM-741 when it gives none of the known ones."""
        name = type(self.model).__name__
        try:
            found = self.model(**batch, **self._options, return_dict=True)
        except Exception as error:
            cause = f"{name} does not answer {' and '.join(self.inputs)} alone ({first_line(error)})"
            raise LissomError(741, cause, remedy=_OTHER_HEAD) from error
        self.outputs = next((names for names in _ANSWERS if found.keys() >= set(names)), ())
        self.outputs += exits.OUTPUTS if self.outputs and self.settings else ()
        if not self.outputs:
            cause = f"{name} answers {', '.join(found.keys())}, and no runner reads those"
            raise LissomError(741, cause, remedy=_OTHER_HEAD)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    ship: Callable[[Path], parity.Graph] | None = None,
) -> dict[str, Any]:
    """Fill `folder` and prove the graph against torch. Returns what the manifest holds about it.

    ship: makes of the ONNX file what another engine reads, and that is proved instead.
    Raises LissomError LSM-741 to 743 for a model that does not become a graph, LSM-911 to 913 when the check fails.
    """
    work, notes = _plain_copy(model)
    forward = Forward(work, input_names(work, tokenizer))
    samples = parity.samples(work, forward.inputs)
    with torch.inference_mode():
        forward.name_outputs(samples[1])
    attention = work.config._attn_implementation
    with _as_eager(work, attention):
        program = _trace(forward)
    packed = any(isinstance(module, (Int8Linear, Int8Embedding, *IN_GRAPHS)) for module in work.modules())
    path = folder / "onnx" / ("model_quantized.onnx" if packed else "model.onnx")
    path.parent.mkdir()
    path.write_bytes(_graph(program, forward))
    shipped = None if ship is None else ship(path)
    figures = parity.check(path, exits.whole(forward), samples, shipped=shipped)
    if forward.settings:
        figures["exits"] = exits.check(shipped or parity.Graph(path, f"onnx/{path.name}"), path, forward, samples)
    _write_config(model, folder, packed=packed)
    if hasattr(model.config, "_sentence"):
        write_sentence(sentence_of(model), folder, model.config.get_text_config().hidden_size)
    if tokenizer is not None:
        made = copy.deepcopy(tokenizer)  # no other file of the folder says how much the graph can read
        made.model_max_length = min(tokenizer.model_max_length, positions(model) or tokenizer.model_max_length)
        made.save_pretrained(folder)
    about = {"opset": graph.OPSET, "inputs": forward.inputs, "outputs": forward.outputs, "parity": figures}
    about |= exits.about(work)
    return {**about, "notes": notes} if notes else about


def _plain_copy(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A float32 copy on the CPU, in eval mode, and notes on it. Raises LissomError for what cannot become one graph."""
    check_generates(model)
    _check_size(model)
    made: PreTrainedModel = copy.deepcopy(model).train(False)
    notes = to_blocks(made)
    unpack(made)
    _check_size(made)
    return nn.Module.to(made, "cpu", torch.float32), notes


def check_generates(model: PreTrainedModel) -> None:
    """Raise LissomError LSM-741 for a model that generates with an encoder and a decoder."""
    if model.config.is_encoder_decoder and model.can_generate():
        raise LissomError(
            741,
            f"{type(model).__name__} generates with an encoder and a decoder, which are not one graph",
            remedy="Export an encoder, a classifier or a decoder.",
        )


def _check_size(model: PreTrainedModel) -> None:
    tensors = once((*model.parameters(), *model.buffers()))
    size = sum(one.numel() * (4 if one.is_floating_point() else one.element_size()) for one in tensors)
    if size >= _LARGEST:
        raise LissomError(
            743,
            f"the graph would take {size / 2**30:.1f} GiB, one ONNX file ends at 2 GiB",
            remedy="Compress the model first; int8 takes a quarter.",
        )


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Which of the usual inputs the model reads and the tokenizer gives, in order."""
    read = inspect.signature(model.forward).parameters
    given = {"input_ids", "attention_mask"} | set(() if tokenizer is None else tokenizer.model_input_names)
    return tuple(name for name in _INPUTS if name in read and name in given)


@contextlib.contextmanager
def _as_eager(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Attention written out, while the model is traced: ONNX Runtime runs that as fast as its own attention operator,
    and without the guards that torch's fused attention puts around each softmax. Our own is written out as it is."""
    if attention == ATTENTION:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter tells its own developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _trace(forward: Forward) -> torch.export.ExportedProgram:
    """The model as a program with free batch and length. Raises LissomError LSM-742 when it cannot be traced so."""
    batch = parity.batch(forward.model.config, forward.inputs, rows=2, length=9, seed=0)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quietly(), torch.no_grad():
            return torch.export.export(
                forward,
                (*(batch[name] for name in forward.inputs), *forward.settings.values()),
                dynamic_shapes=((*(free,) * len(forward.inputs), *(None,) * len(forward.settings)),),
                strict=False,
            )
    except Exception as error:
        raise _untraceable(forward, error) from error


def _graph(program: torch.export.ExportedProgram, forward: Forward) -> bytes:
    """The program as an ONNX file. Raises LissomError LSM-742 when one of its operators has no ONNX form."""
    try:
        with _quietly(), torch.no_grad():
            made = torch.onnx.export(
                program,
                input_names=[*forward.inputs, *forward.settings],
                output_names=list(forward.outputs),
                opset_version=graph.OPSET,
                custom_translation_table=graph.translations(),
                optimize=True,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise _untraceable(forward, error) from error
    return graph.with_defaults(graph.polish(made.model), forward.settings)  # type: ignore[union-attr]


def _untraceable(forward: Forward, error: Exception) -> LissomError:
    name = type(forward.model).__name__
    cause = f"{name} does not become a graph with free batch and length ({first_line(error)})"
    return LissomError(742, cause, remedy=_OTHER_HEAD)


def _write_config(model: PreTrainedModel, folder: Path, *, packed: bool) -> None:
    """config.json as transformers.js reads it; it names the int8 graph, which not every device looks for by itself."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    entries = json.loads(config.to_json_string(use_diff=True))
    entries = {key: value for key, value in entries.items() if not key.startswith("_")}  # such as local paths
    entries.pop("quantization_config", None)
    entries["dtype"] = "float32"
    if packed:
        entries["transformers.js_config"] = {"dtype": "q8"}
    write_json(folder / "config.json", entries)
