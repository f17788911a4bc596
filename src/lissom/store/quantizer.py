"""The hooks by which transformers itself loads a lissom folder. See `lissom.bridge` for how they are registered."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.files import check_safetensors
from lissom.store.config import METHOD
from lissom.store.record import record_from_json
from lissom.store.saving import WEIGHTS
from lissom.store.skeleton import check_implied, declared_ties, edited_ties, own_memory, put_back, replay
from lissom.store.zeros import close_maps, maps_from_json, open_maps

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@register_quantization_config(METHOD)
class LissomConfig(QuantizationConfigMixin):
    """The `quantization_config` of a `config.json` that needs lissom: the record of its model, and which maps
    are stored without their zeros; nothing else."""

    def __init__(self, quant_method: str = METHOD, **fields: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers lists only its own
        self.restore = fields.get("restore", {})
        self.edits = fields.get("edits", [])
        self.zeros = fields.get("zeros", {})


@register_quantizer(METHOD)
class LissomQuantizer(HfQuantizer):
    """Replays the record on the empty model before transformers fills in the weights. Quantizes nothing by itself."""

    quantization_config: LissomConfig

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Put the base values back into the config: the first hook that sees it before the model is built."""
        self._record = record_from_json(self.quantization_config.to_dict())
        put_back(config, self._record.restore)
        return config

    def preprocess_model(self, model: PreTrainedModel, dtype: Any = None, **context: Any) -> None:
        """Edit the empty model, then compare it with the headers of the files."""
        replay(model, self._record)
        tied = edited_ties(model)
        model.all_tied_weights_keys = declared_ties(model)
        self._tied = {**tied, **model.all_tied_weights_keys}
        self._sparse = open_maps(model, maps_from_json(self.quantization_config.zeros))
        masks = {f"{name}_mask": f"{source}_mask" for name, source in tied.items()}
        tied |= {name: source for name, source in masks.items() if name.rpartition(".")[0] in self._sparse}
        paths = context.get("checkpoint_files") or []
        found = {name: shape for path in paths for name, (_, shape) in check_safetensors(Path(path)).items()}
        if [type(model).__name__] == model.config.architectures:
            _compare(model, {**tied, **model.all_tied_weights_keys}, found, str(next(iter(paths), WEIGHTS)))
            for module in model.modules():  # nothing is missing, and what some families fill in anew may be packed
                if not module._non_persistent_buffers_set:
                    module._is_hf_initialized = True  # type: ignore[assignment]
        else:  # another head takes what it knows and no more
            given = sum(math.prod(one) * (8 if name.endswith(".weight_mask") else 1) for name, one in found.items())
            check_implied(model, given, str(next(iter(paths), WEIGHTS)))
        # transformers fills places that no file names with random numbers; `settle` puts the shared tensors there
        ignored = {f"^{re.escape(name)}$" for name in tied}
        model._keys_to_ignore_on_load_missing = ignored | set(model._keys_to_ignore_on_load_missing or ())

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Share tensors again and leave an ordinary model: it trains, and is saved, as if it had never been a file."""
        del model._keys_to_ignore_on_load_missing
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        close_maps(model, self._sparse, self._tied)
        Editor(model).settle()
        own_memory(model)

    def is_serializable(self) -> bool:
        """Whether transformers may save the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether transformers may train the model."""
        return True


def _compare(model: PreTrainedModel, tied: dict[str, str], given: dict[str, tuple[int, ...]], place: str) -> None:
    """Refuse files whose tensors are not those of the empty model, before any of them is read.

    tied: names that a file need not hold, because another name's tensor takes their place.
    given: name -> shape of what the files hold.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    remedy = "The folder is damaged or was put together by hand. Save it again."
    missing = sorted(wanted.keys() - given.keys() - tied.keys())
    if missing:
        raise LissomError(443, f'tensor "{missing[0]}" is missing ({len(missing)} in all)', place=place, remedy=remedy)
    extra = sorted(given.keys() - wanted.keys())
    if extra:
        raise LissomError(444, f'tensor "{extra[0]}" has no place in the model ({len(extra)} in all)', place=place)
    for name, shape in given.items():
        if shape != wanted[name]:
            cause = f'tensor "{name}" has shape {list(shape)}, the model wants {list(wanted[name])}'
            raise LissomError(445, cause, place=place, remedy=remedy)
