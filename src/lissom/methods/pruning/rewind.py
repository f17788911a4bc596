"""Give the weights that are left the values that they had before the first step: what is left is trained anew.

Source: Liang et al. 2021, "Super tickets in pre-trained language models", section 3 (weights of heads and feed-forward
layers return to the pre-trained ones); Frankle and Carbin 2019, "The lottery ticket hypothesis", section 1.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch

from lissom import edits
from lissom.edits import Edit, Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage

CUTS: tuple[type[Edit], ...] = (edits.KeepLayers, edits.KeepHeads, edits.KeepNeurons)
"""Edits that take parts away and leave the values of the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind(Method):
    """Take the weights that are left back to what they were before the first step."""

    name: ClassVar[str] = "rewind"
    stage: ClassVar[Stage] = Stage.TUNE
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})
    speed: ClassVar[str] = "no faster: it changes values"
    source: ClassVar[str] = "Liang et al. 2021, section 3"

    def apply(self, editor: Editor, given: Given) -> None:
        """Cut the original as the model was cut, and take its values.

        Raises LSM-319 when the original has not got them: it is another model, or more than layers, heads and neurons
        was changed.
        """
        if given.teacher is None:
            raise LissomError(317, "needs the original model", remedy="Give it as given.teacher.")
        start = Editor(copy.deepcopy(given.teacher))
        before, after = start.record.edits, editor.record.edits
        if after[: len(before)] != before:
            raise LissomError(319, "the teacher is not the model that this one was cut from", remedy="Give no teacher.")
        for edit in after[len(before) :]:
            if not isinstance(edit, CUTS):
                cause = f"{type(edit).__name__} changed more than which layers, heads and neurons there are"
                raise LissomError(319, cause, remedy="Rewind before that step.")
            start.apply(edit)
        values = dict(start.model.named_parameters())
        mine = dict(editor.model.named_parameters())
        if {name: one.shape for name, one in values.items()} != {name: one.shape for name, one in mine.items()}:
            raise LissomError(319, "the teacher is not the model that this one was cut from", remedy="Give no teacher.")
        with torch.no_grad():
            for name, one in mine.items():
                one.copy_(values[name])
