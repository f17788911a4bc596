"""A smaller model of the same family and class, built from its config with random weights, for `tune` to teach."""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from lissom.anatomy.dissect import family_of
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Stage
from lissom.nn import Int8Embedding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from lissom.anatomy import Anatomy
    from lissom.edits import Editor

log = logging.getLogger(__name__)

_Size = Annotated[int, Field(ge=1, le=65536)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshStudent(Method):
    """Go on with an untrained model of other sizes. Where there is an encoder and a decoder, both get them."""

    name: ClassVar[str] = "fresh_student"
    stage: ClassVar[Stage] = Stage.STUDENT
    speed: ClassVar[str] = "faster in every runtime, in proportion to the layers and the square of the width taken away"
    source: ClassVar[str] = "Turc et al. 2019 (well-read students), section 3; Jiao et al. 2020 (TinyBERT), section 4"

    layers: Annotated[_Size | None, Field(description="how many; null: as the original")] = None
    hidden: Annotated[_Size | None, Field(description="width of the hidden states; null: as the original")] = None
    heads: Annotated[_Size | None, Field(description="attention heads; null: as the original")] = None
    intermediate: Annotated[
        _Size | None, Field(description="neurons of a feed-forward layer; null: as the original")
    ] = None
    embeddings: Annotated[
        bool, Field(description="begin with copies of the original's tables of tokens and positions where they fit")
    ] = True

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-318 when the sizes do not go together, LSM-715 for a model without layers."""
        if not anatomy.stacks:
            raise LissomError(715, f"{anatomy.family} has no layers to be built anew")
        self._config(anatomy.model)

    def apply(self, editor: Editor, given: Given) -> None:
        """Replace the model. Raises LSM-318 when transformers makes no model of these sizes."""
        original, tables = editor.model, editor.anatomy().embeddings
        with torch.random.fork_rng():
            torch.manual_seed(given.seed)
            student = _built(type(original), self._config(original))
        if self.embeddings:
            _copy(original, student, tables)
        editor.replace(torch.nn.Module.to(student, original.device))

    def _config(self, model: Any) -> PreTrainedConfig:
        """The original's config with the new sizes, under the names that its family has for them."""
        old, family = model.config, family_of(model)
        hidden = self.hidden or old.hidden_size
        new: dict[str, Any] = {"hidden_size": hidden, **dict.fromkeys(family.as_wide, hidden)}
        for record in family.stacks:
            heads = getattr(old, record.heads_key)
            new[record.depth_key] = self.layers or getattr(old, record.depth_key)
            new[record.heads_key] = self.heads or heads
            new[record.width_key] = self.intermediate or getattr(old, record.width_key)
            new |= _heads(old, hidden, heads, new[record.heads_key])
        kinds = getattr(old, "layer_types", None)
        if kinds is not None:  # for more layers than before: as the config lays them out
            new["layer_types"] = kinds[: self.layers] if (self.layers or 0) <= len(kinds) else None
        entries = copy.deepcopy(old.to_dict())
        for key, value in new.items():
            entries[old.attribute_map.get(key, key)] = value
        try:
            made: PreTrainedConfig = type(old).from_dict(entries)
        except Exception as error:
            raise _unfit(error) from error
        made.name_or_path = ""
        return made


def _heads(old: PreTrainedConfig, hidden: int, before: int, heads: int) -> dict[str, int]:
    """The entries that follow from the number of heads: their size, and the key/value heads of grouped queries.

    A size that was hidden / heads is so again; one of its own stays.  Raises LSM-318.
    """
    found: dict[str, int] = {}
    size = getattr(old, "head_dim", None)
    if size is None or size * before == old.hidden_size:
        if hidden % heads:
            cause = f"{heads} heads do not divide a hidden size of {hidden}"
            raise LissomError(318, cause, remedy=f"Give heads that divide {hidden}, or another hidden.")
        if size is not None:
            found["head_dim"] = hidden // heads
        turned = int(hidden // heads * getattr(old, "rotary_pct", 1.0))
        if getattr(old, "rope_parameters", None) and turned % 2:
            cause = f"rotary positions turn pairs of numbers, and a head of {hidden // heads} has {turned} to turn"
            raise LissomError(318, cause, remedy="Give hidden and heads with an even quotient.")
    grouped = getattr(old, "num_key_value_heads", None)
    if grouped:
        share = before // grouped
        if heads % share:
            cause = f"{share} query heads use one key/value head, and {heads} is no multiple of that"
            raise LissomError(318, cause, remedy=f"Give heads that {share} divides.")
        found["num_key_value_heads"] = heads // share
    return found


def _built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A random model in float32 and eval mode."""
    try:
        made: PreTrainedModel = kind._from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise _unfit(error) from error
    made.train(False)
    return made


def _unfit(error: Exception) -> LissomError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return LissomError(318, f"transformers makes no model of these sizes: {said}", remedy="Give others.")


def _copy(original: PreTrainedModel, student: PreTrainedModel, tables: tuple[str, ...]) -> None:
    """Copy the tables of the original that have the student's shape."""
    copied = []
    for path in tables:
        table: Any = original.get_submodule(path)
        new: Any = student.get_submodule(path)
        weight = table.dense() if isinstance(table, Int8Embedding) else table.weight
        if weight.shape == new.weight.shape:
            new.weight.data.copy_(weight.detach())
            copied.append(path)
    log.info("copied from the original: %s", ", ".join(copied) or "no table, because the widths differ")
