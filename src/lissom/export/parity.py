"""Proof that an exported graph answers as torch does: the file that ships, in the engine that runs it.

Four batches of random ids with real padding: (1, 1), (1, 7), (3, 16) and (8, up to 128). Answers are compared at real
tokens. Float32 graphs must agree within 1e-4 + 1e-3 of the value.

Int8 layers round their activations, and a rounding that falls the other way in one place changes what comes after:
two correct kernels that differ in the last bit of float32 already end up apart (MiniLM-L6, all tokens: cosine 0.997
between torch's own two, 0.993 between torch and ONNX Runtime). So a graph with int8 layers is proved in two parts. With
the activations left unrounded, the same graph with its int8 weights must agree with torch as closely as a float32
graph. And the file that ships may differ from torch's int8 arithmetic by no more than twice what rounding
the activations changes in torch alone. Models that compute with whole numbers alone have no such noise: their
graphs must agree as float32 graphs.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lissom.anatomy import positions
from lissom.errors import LissomError
from lissom.export import graph
from lissom.nn import Int8Linear
from lissom.nn.integer_layers import IntegerLinear

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from lissom.export.onnx import Forward

ABSOLUTE, RELATIVE = 1e-4, 1e-3
NOISE = 2.0  # times; independent noise of the same size in both would give 1.4
_SHAPES = ((1, 1), (1, 7), (3, 16), (8, 128))
REMEDY = "Nothing was written. Please report the model type and these numbers."

Answers: TypeAlias = "list[NDArray[np.float32]]"


def samples(model: PreTrainedModel, inputs: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """The batches that every graph is checked with."""
    longest = min(128, positions(model) or 128)
    return [
        batch(model.config, inputs, rows=rows, length=min(length, longest), seed=seed)
        for seed, (rows, length) in enumerate(_SHAPES)
    ]


def batch(config: Any, inputs: tuple[str, ...], *, rows: int, length: int, seed: int) -> dict[str, Tensor]:
    """Random ids of the vocabulary, the first row full and the others cut at random lengths and padded.

    The last real id is that of the end of a text, where there is one: some heads answer at it.
    Returns int64 (rows, length) each.
    """
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    pad = 0 if text.pad_token_id is None else text.pad_token_id
    end = text.eos_token_id if isinstance(text.eos_token_id, int) else None
    words = torch.tensor([number for number in range(text.vocab_size) if number not in (pad, end)])
    ids = words[torch.randint(len(words), (rows, length), generator=generator)]
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    if end is not None:
        ids.scatter_(1, lengths - 1, end)
    mask = (torch.arange(length) < lengths).long()
    kinds = min(getattr(text, "type_vocab_size", 0) or 1, 2)
    made = {
        "input_ids": torch.where(mask == 1, ids, pad),
        "attention_mask": mask,
        "token_type_ids": (torch.arange(length) * 2 // length).expand(rows, length).clamp(max=kinds - 1).contiguous(),
    }
    return {name: made[name] for name in inputs}


@dataclasses.dataclass(frozen=True)
class Graph:
    """An exported graph in the engine that runs it. file: the file, or its bytes.  place: what errors name."""

    file: Path | bytes
    place: str

    @property
    def engine(self) -> str:
        """Its name and version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def answers(self, forward: Forward, given: list[dict[str, Tensor]]) -> list[Answers]:
        """What it answers to each batch, in the order of `forward.outputs`.

        Raises LissomError LSM-912 when an axis is fixed or does not run, LSM-913 when an output is missing.
        """
        from lissom.runtime.onnx import open_session

        session = open_session(self.file, threads=torch.get_num_threads())
        self._check_axes(session, forward)
        chosen = {name: one.numpy() for name, one in forward.settings.items()}
        made = []
        for one in given:
            try:
                made.append(
                    session.run(
                        list(forward.outputs), {**{name: one[name].numpy() for name in forward.inputs}, **chosen}
                    )
                )
            except Exception as error:
                shape = tuple(one["input_ids"].shape)
                cause = f"the graph does not run at (batch, sequence) = {shape}: {' '.join(str(error).split())[:200]}"
                raise LissomError(912, cause, place=self.place, remedy=REMEDY) from error
        return made

    def _check_axes(self, session: Any, forward: Forward) -> None:
        outputs = {value.name: value.shape for value in session.get_outputs()}
        missing = [name for name in forward.outputs if name not in outputs]
        if missing:
            cause = f"the graph has no output {missing[0]}, but {', '.join(outputs)}"
            raise LissomError(913, cause, place=self.place, remedy=REMEDY)
        inputs = {value.name: value.shape for value in session.get_inputs()}
        for name in forward.inputs:
            shape = inputs.get(name, "left out")
            if shape != ["batch", "sequence"]:
                cause = f"input {name} is {shape}, not (batch, sequence) with both free"
                raise LissomError(912, cause, place=self.place, remedy=REMEDY)
        for name in forward.outputs:
            if not isinstance(outputs[name][0], str):
                cause = f"output {name} is {outputs[name]}: its batch axis is fixed"
                raise LissomError(912, cause, place=self.place, remedy=REMEDY)


def check(
    path: Path, forward: Forward, given: list[dict[str, Tensor]], *, shipped: Graph | None = None
) -> dict[str, Any]:
    """Compare the file with torch on the batches `given`; see the head of this module.

    path: the ONNX file.  shipped: what was made of it for another engine, which is then what is compared.
    Returns the figures for the manifest. Raises LissomError LSM-911 when the answers differ too much, LSM-912 when an
    axis is fixed, LSM-913 when an output is missing, has another shape or holds NaN.
    """
    shipped = Graph(path, f"onnx/{path.name}") if shipped is None else shipped
    whole = any(isinstance(module, IntegerLinear) for module in forward.modules())
    unrounded = None if whole else graph.unrounded(path.read_bytes())
    theirs = shipped.answers(forward, given)
    bare = None if unrounded is None else dataclasses.replace(shipped, file=unrounded).answers(forward, given)
    return {**compare(theirs, bare, forward, given, place=shipped.place), "runtime": shipped.engine}


def compare(
    answers: list[Answers], bare: list[Answers] | None, forward: Forward, given: list[dict[str, Tensor]], *, place: str
) -> dict[str, Any]:
    """Figures of what another engine answers beside what torch does; see the head of this module.

    answers: to each batch.  bare: the same with activations left unrounded, None where none are rounded.
    Raises LissomError LSM-911 when the answers differ too much, LSM-913 for another shape or NaN.
    """
    theirs = _at_tokens(answers, given, place)
    ours = _at_tokens(torch_answers(forward, given), given, "torch")
    figures = {
        "reference": f"torch {torch.__version__}",
        "shapes": [list(one["input_ids"].shape) for one in given],
        "largest_difference": agree(theirs, ours, place, ABSOLUTE if bare is None else math.inf),
        "cosine": _cosine(theirs, ours),
    }
    if bare is not None:
        plain = _at_tokens(torch_answers(unrounded(forward), given), given, "torch")
        exact, where = _at_tokens(bare, given, place), f"{place} (activations unrounded)"
        figures["unrounded_largest_difference"] = agree(exact, plain, where, ABSOLUTE)
        figures["rounding_noise"] = _noise(theirs, ours, plain, place)
    return figures


def torch_answers(forward: Forward, given: list[dict[str, Tensor]]) -> list[Answers]:
    """What a model in torch answers to each batch."""
    with torch.inference_mode():
        chosen = forward.settings.values()
        return [[y.numpy() for y in forward(*(one[name] for name in forward.inputs), *chosen)] for one in given]


def unrounded(forward: Forward) -> Forward:
    """A copy whose int8 linear layers are float layers of the same weights."""
    made = copy.deepcopy(forward)
    new: dict[int, nn.Linear] = {}
    for path, module in list(made.named_modules(remove_duplicate=False)):
        if isinstance(module, Int8Linear):
            if id(module) not in new:
                linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
                linear.weight = nn.Parameter(module.dense())
                if module.bias is not None:
                    linear.bias = nn.Parameter(module.bias)
                new[id(module)] = linear
            made.set_submodule(path, new[id(module)])
    return made


def _at_tokens(answers: list[Answers], given: list[dict[str, Tensor]], place: str) -> Answers:
    """Each answer at the real tokens; an answer to whole texts stays as it is. Flat, in one list.

    Raises LissomError LSM-913 for NaN and infinity.
    """
    made = []
    for one, outputs in zip(given, answers, strict=True):
        real = one["attention_mask"].numpy() == 1
        for y in outputs:
            # a text has one row of classes; (rows, length) without classes is a span, which is a matter of tokens
            kept = y[real] if y.ndim == 3 or (len(outputs) == 2 and y.shape == real.shape) else y
            if not np.isfinite(kept).all():
                raise LissomError(
                    913,
                    f"the answer at (batch, sequence) = {real.shape} holds NaN or infinity",
                    place=place,
                    remedy="Its weights are damaged.",
                )
            made.append(kept)
    return made


def agree(theirs: Answers, ours: Answers, place: str, absolute: float) -> float:
    """The largest difference. Raises LissomError LSM-911 for one over the tolerance, LSM-913 for another shape."""
    largest = 0.0
    for a, b in zip(theirs, ours, strict=True):
        if a.shape != b.shape:
            raise LissomError(913, f"an answer has shape {a.shape}, torch gives {b.shape}", place=place, remedy=REMEDY)
        difference = np.abs(a - b)
        over = difference - RELATIVE * np.abs(b)
        if over.size and over.max() > absolute:
            at = np.unravel_index(over.argmax(), over.shape)
            cause = (
                f"it answers {a[at]:.6g} where torch answers {b[at]:.6g}, more than {ABSOLUTE} + {RELATIVE} of it apart"
            )
            raise LissomError(911, cause, place=place, remedy=REMEDY)
        largest = max(largest, float(difference.max(initial=0)))
    return largest


def _flat(answers: Answers) -> NDArray[np.float64]:
    return np.concatenate([one.ravel() for one in answers]).astype(np.float64)


def _cosine(theirs: Answers, ours: Answers) -> float:
    a, b = _flat(theirs), _flat(ours)
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)


def _noise(theirs: Answers, ours: Answers, plain: Answers, place: str) -> float:
    """How far the file is from torch's int8 arithmetic, in units of what rounding the activations changes in torch."""
    a, b, c = _flat(theirs), _flat(ours), _flat(plain)
    apart, rounding = float(np.linalg.norm(a - b)), float(np.linalg.norm(b - c))
    if apart > NOISE * rounding + ABSOLUTE * math.sqrt(a.size):
        cause = f"it differs from torch's int8 arithmetic by {apart:.3g}, and rounding itself changes {rounding:.3g}"
        raise LissomError(911, cause, place=place, remedy=f"{REMEDY} Without VNNI, int8 sums saturate on some CPUs.")
    return apart / max(rounding, 1e-30)
