"""compressed-tensors: an ordinary transformers folder whose packed layers vLLM and transformers read.

    config.json  model.safetensors  generation_config.json  tokenizer files  lissom.json

Codes, scales and zero points are those of the model, never new ones:

- layers of 4 or 8 bits in groups become `pack-quantized` (W4A16, W8A16):

      weight_packed      (out, ceil(in · bits / 32)) int32     codes of a row side by side, the first in the lowest bits
      weight_scale       (out, groups) float16; float32 where there are zero points, for transformers decodes those
                         layers in the dtype of the scales
      weight_zero_point  (ceil(out · bits / 32), groups) int32, down the rows; left out where all are 2^(bits - 1)
      weight_shape       (2,) int64

- int8 layers become `int-quantized` (W8A8): `weight` (out, in) int8 and `weight_scale` (out, 1) float32. Where the
  scale of inputs is fixed, `input_scale` and `input_zero_point` (1,) hold it: codes of ours are 0 to 255, there -128 to
  127. Where it is found while it runs, the engines that read this format find one for each token, symmetric:
  compressed-tensors max|x| / 127.5. Layers of `int8: {per: token}` take max|x| / 127, others one for all tokens, which
  the format could say and no engine would run. So these answers differ by roundings.

Other layers stay in floating point and are listed under `ignore`; an int8 table is written as what it stands for.
A model whose structure does not follow from its config alone, or with layers that the format has no form for, is
refused. The folder is loaded by `from_pretrained` before it is kept, and proved as `lissom.export.parity` says.
Source: github.com/vllm-project/compressed-tensors, 0.20: compressors/pack_quantized, quantization/quant_config.py.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import io
import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.anatomy import positions
from lissom.edits import Record
from lissom.errors import LissomError
from lissom.export import parity
from lissom.export.onnx import Forward, check_generates, input_names
from lissom.files import write_json
from lissom.nn import Int8Embedding, Int8Linear
from lissom.nn.grouped import GroupedLinear
from lissom.nn.palette import pack_indices
from lissom.nn.static import StaticInt8Linear
from lissom.store import load
from lissom.store.classes import OURS
from lissom.store.saving import WEIGHTS, final_config, write_weights
from lissom.store.skeleton import declared_ties, shapes, skeleton

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHOD = "compressed-tensors"
ROUNDED = (
    "Inputs of int8 layers are rounded with one scale a token, at 127.5 steps, by transformers, and with {} in lissom: "
    "answers differ by {:.1f} times what rounding them changes."
)
DECODED = (
    "transformers decodes the zero points of this folder while it loads, to float weights; vLLM reads them as they are."
)
BFLOAT16 = "Loaded in bfloat16, as its config says, the scales of weights are rounded to 8 bits."
_REMEDY = "Run it with lissom.load, or export it to onnx."


@dataclasses.dataclass(frozen=True, order=True)
class Scheme:
    """How layers are stored. bits, group: of weights; group 0 is one scale a row.  inputs: how they are rounded."""

    bits: int
    group: int
    inputs: str = ""

    def entries(self, targets: list[str], *, symmetric: bool) -> dict[str, Any]:
        """The config group, as compressed-tensors reads it."""
        weights = {"num_bits": self.bits, "type": "int", "symmetric": symmetric, "dynamic": False}
        weights |= {"strategy": "group", "group_size": self.group} if self.group else {"strategy": "channel"}
        inputs: dict[str, Any] | None = None
        if self.inputs:
            static = self.inputs == "static"
            inputs = {"num_bits": 8, "type": "int", "symmetric": not static, "dynamic": not static}
            inputs["strategy"] = "tensor" if static else "token"
        form = "int-quantized" if self.inputs else "pack-quantized"
        return {"targets": targets, "weights": weights, "input_activations": inputs, "format": form}


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
    """Fill `folder` and prove it, loaded by transformers, against torch. Returns what the manifest holds about it.

    Raises LissomError LSM-739 when compressed-tensors is missing, LSM-741 for a model that generates with
    an encoder and a decoder or answers nothing that is known, LSM-744 for one that the format cannot hold,
    LSM-911 to 913 when the check fails.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise LissomError(739, "compressed-tensors is not installed", remedy='pip install "lissom[llm]"')
    check_generates(model)
    empty = skeleton(model, Record())
    layers = _layers(model, empty)
    schemes = {path: _scheme(layer, path) for path, layer in layers.items()}
    symmetric = {one: _symmetric(layers, schemes, one) for one in schemes.values()}
    packing = _config(schemes, symmetric, empty)
    config = final_config(model, None)
    write_json(folder / "config.json", {**config, "quantization_config": packing})
    write_weights(_state(model, layers, schemes, symmetric), folder / WEIGHTS, declared_ties(empty))
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    figures = _prove(model, tokenizer, folder)
    if tokenizer is not None:
        made = copy.deepcopy(tokenizer)
        made.model_max_length = min(tokenizer.model_max_length, positions(model) or tokenizer.model_max_length)
        made.save_pretrained(folder)
    notes = []
    if any(one.inputs == "dynamic" for one in symmetric):
        per_token = all(one.per_token for one in layers.values())
        how = "one a token, at 127 steps," if per_token else "one a tensor"
        notes.append(ROUNDED.format(how, figures["rounding_noise"]))
    if "dequantize" in packing:
        notes.append(DECODED)
    if model.dtype == torch.bfloat16:
        notes.append(BFLOAT16)
    about: dict[str, Any] = {"format": packing["format"], "parity": figures}
    return {**about, "notes": notes} if notes else about


def _refusal(cause: str, remedy: str = _REMEDY) -> LissomError:
    return LissomError(744, cause, remedy=remedy)


def _layers(model: PreTrainedModel, empty: PreTrainedModel) -> dict[str, Int8Linear]:
    """The packed linear layers of `model` by path.

    empty: what the config alone builds. Raises LissomError LSM-744 where the format cannot hold the model.
    """
    name = type(model).__name__
    layers: dict[str, Int8Linear] = {}
    stored = shapes(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Int8Embedding | Int8Linear):
            if type(module) not in (GroupedLinear, Int8Linear, StaticInt8Linear, Int8Embedding):
                raise _refusal(f"{METHOD} has no form for {path}, a {type(module).__name__} of {name}")
            own = [key for key in stored if key.startswith(f"{path}.") and key != f"{path}.bias"]
            stored = {key: one for key, one in stored.items() if key not in own}
            stored[f"{path}.weight"] = (tuple(module.dense().shape), "float")
        if isinstance(module, Int8Linear):
            layers[path] = module
    if not layers:
        raise _refusal(f"no linear map of this {name} is packed", "Compress it first, with rtn, gptq, awq or int8.")
    for path in layers:
        place = empty.get_submodule(path) if path in dict(empty.named_modules(remove_duplicate=False)) else None
        if place is not None and not isinstance(place, nn.Linear):
            raise _refusal(f"{METHOD} holds Linear layers, and {path} of {name} is a {type(place).__name__}")
    wanted = shapes(empty)
    if stored != wanted or name in OURS:
        lost = next((one for one in sorted(stored.keys() | wanted.keys()) if stored.get(one) != wanted.get(one)), name)
        raise _refusal(f"the structure of this {name} does not follow from its config alone: {lost}")
    return layers


def _scheme(layer: Int8Linear, path: str) -> Scheme:
    """How a layer is stored. Raises LissomError LSM-744 for one that the format cannot hold."""
    if not isinstance(layer, GroupedLinear):
        return Scheme(8, 0, "static" if isinstance(layer, StaticInt8Linear) else "dynamic")
    if layer.bits not in (4, 8):
        raise _refusal(f"{METHOD} is read with 4 or 8 bits, and {path} has {layer.bits}")
    group, zero = min(layer.group, layer.columns), layer.weight_zero.float()
    if layer.columns % group:
        cause = f"groups of {group} do not divide the {layer.columns} columns of {path}"
        fits = _fitting(layer.columns)
        leave = f'No group that a step takes does: leave it out of the packing, skip: ["{path}"].'
        raise _refusal(cause, f"Compress it again with groups that do, such as {fits}." if fits else leave)
    if not bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**layer.bits)).all()):
        cause = f"{METHOD} holds whole zero points, and those of {path} are not"
        raise _refusal(cause, "Compress it with rtn, gptq or awq; those of hqq are not whole.")
    return Scheme(layer.bits, group)


def _fitting(columns: int) -> int:
    """A group that divides so many columns: a power of two up to 128, else the least that a step takes, else 0."""
    power = columns & -columns
    return min(power, 128) if power >= 8 else next((one for one in range(8, 4097) if columns % one == 0), 0)


def _symmetric(layers: dict[str, Int8Linear], schemes: dict[str, Scheme], scheme: Scheme) -> bool:
    """Whether all layers of a scheme have the middle code as zero point."""
    zeros = (layers[path].weight_zero for path, one in schemes.items() if one == scheme and scheme.inputs == "")
    return all(bool((zero == 2 ** (scheme.bits - 1)).all()) for zero in zeros)


def _config(schemes: dict[str, Scheme], symmetric: dict[Scheme, bool], empty: nn.Module) -> dict[str, Any]:
    """The `quantization_config` of config.json. Raises LissomError LSM-744 for zero points beside another scheme."""
    import compressed_tensors

    linears = [path for path, module in empty.named_modules() if isinstance(module, nn.Linear)]
    groups, only = {}, len(symmetric) == 1
    for number, (scheme, even) in enumerate(sorted(symmetric.items())):
        targets = ["Linear"] if only else [path for path, one in schemes.items() if one == scheme]
        groups[f"group_{number}"] = scheme.entries(targets, symmetric=even)
    formats = sorted({one["format"] for one in groups.values()})
    made = {
        "quant_method": METHOD,
        "version": compressed_tensors.__version__,
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [path for path in linears if path not in schemes],
    }
    if not all(symmetric.values()):
        # 0.20 makes room for zero points as they were before packing, so that transformers finds another shape; where
        # it decodes while it loads it makes none, but then knows one scheme only
        if not only:
            cause = "transformers does not load zero points beside layers of another scheme"
            raise _refusal(cause, "Give all maps the same bits and groups, or run it with lissom.load.")
        made["dequantize"] = True
    return made


def _state(
    model: PreTrainedModel, layers: dict[str, Int8Linear], schemes: dict[str, Scheme], symmetric: dict[Scheme, bool]
) -> dict[str, Tensor]:
    """Every tensor of the folder."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for path, table in _tables(model):
        del state[f"{path}.weight_scale"]
        state[f"{path}.weight"] = table
    for path, layer in layers.items():
        for key in [key for key in state if key.startswith(f"{path}.") and key != f"{path}.bias"]:
            del state[key]
        scheme = schemes[path]
        tensors = _packed(layer, symmetric[scheme]) if isinstance(layer, GroupedLinear) else _whole(layer)
        state |= {f"{path}.{key}": tensor for key, tensor in tensors.items()}
    return state


def _tables(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The int8 tables by path, as what they stand for in the dtype of the model."""
    for path, module in model.named_modules():
        if isinstance(module, Int8Embedding):
            yield path, module.dense().to(model.dtype)


def _packed(layer: GroupedLinear, symmetric: bool) -> dict[str, Tensor]:
    codes = layer.codes()
    made = {
        "weight_packed": _words(codes, layer.bits),
        "weight_scale": layer.weight_scale,
        "weight_shape": torch.tensor(codes.shape),
    }
    if not symmetric:
        made["weight_scale"] = layer.weight_scale.float()
        made["weight_zero_point"] = _words(layer.weight_zero.float().long().T, layer.bits).T
    return made


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) without sign as int32 (rows, ceil(columns · bits / 32)), the first in the lowest bits."""
    packed = pack_indices(codes, bits).cpu()
    return F.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def _whole(layer: Int8Linear) -> dict[str, Tensor]:
    made = {"weight": layer.weight, "weight_scale": layer.weight_scale[:, None]}
    if isinstance(layer, StaticInt8Linear):
        made["input_scale"] = layer.input_scale[None]
        made["input_zero_point"] = (layer.input_zero.to(torch.int16) - 128).to(torch.int8)[None]
    return made


def _prove(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
    """Load the folder by transformers and compare it with torch, both in float32 on the CPU."""
    import compressed_tensors

    with _quietly():
        loaded = load(folder, dtype=torch.float32)
        forward = Forward(_reference(model, loaded), input_names(model, tokenizer))
        given = parity.samples(forward.model, forward.inputs)
        with torch.inference_mode():
            forward.name_outputs(given[1])
        theirs = Forward(loaded, forward.inputs)
        theirs.outputs = forward.outputs
        answers, bare = parity.torch_answers(theirs, given), None
        if _rounds(forward):
            for one in loaded.modules():
                one.quantization_enabled = False  # type: ignore[assignment]  # its layers then round no inputs
            bare = parity.torch_answers(theirs, given)
    figures = parity.compare(answers, bare, forward, given, place=WEIGHTS)
    return {**figures, "runtime": f"{METHOD} {compressed_tensors.__version__}"}


def _reference(model: PreTrainedModel, loaded: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy of `model` on the CPU that differs from the folder in nothing but how its layers are computed."""
    made: PreTrainedModel = nn.Module.to(copy.deepcopy(model).train(False), "cpu", torch.float32)
    for path, table in _tables(model):
        dense = nn.Embedding(len(table), table.shape[1], device="meta")
        dense.weight = nn.Parameter(table.float().cpu(), requires_grad=False)
        made.set_submodule(path, dense)
    computed = dict(loaded.named_buffers())
    for name, buffer in made.named_buffers():
        if name not in made.state_dict() and name in computed:  # no file holds it, and `model` may have rounded it
            buffer.data = computed[name].clone()
    return made


def _rounds(model: nn.Module) -> bool:
    """Whether a layer rounds its inputs."""
    return any(isinstance(one, Int8Linear) and not isinstance(one, GroupedLinear) for one in model.modules())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and reports of compressed-tensors, which have no switch."""
    log = logging.getLogger("compressed_tensors")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
