"""Every edit on every layout, saved and loaded by lissom and by transformers: the same bits come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import lissom
from lissom.edits import Record
from lissom.files import read_json
from tests import tiny
from tests.contracts.cases import HEADS, SWITCHES, Case
from tests.contracts.test_edits import KIND_AND_CASE, ORDER, edit


def same_bits(model: PreTrainedModel, loaded: PreTrainedModel, case: Case) -> None:
    """Same class, config, tensors, sharing and answers; nothing left of the loading."""
    assert type(loaded) is type(model)
    assert not loaded.training
    inputs = case.inputs(model)
    assert torch.equal(tiny.outputs(model, inputs), tiny.outputs(loaded, inputs))
    found, wanted = loaded.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in wanted.items())
    assert sum(one.numel() for one in loaded.parameters()) == sum(one.numel() for one in model.parameters())
    assert not any(one.is_meta for one in (*loaded.parameters(), *loaded.buffers()))
    assert all(one.requires_grad for one in loaded.parameters())
    volatile = {"_name_or_path", "dtype", "architectures", "transformers_version"}
    before, after = model.config.to_dict(), loaded.config.to_dict()
    assert {key: value for key, value in after.items() if key not in volatile} == {
        key: value for key, value in before.items() if key not in volatile
    }


@pytest.mark.parametrize(("kind", "case"), KIND_AND_CASE)
def test_each_edit(kind: str, case: Case, tmp_path: Path) -> None:
    model = case.model()
    edit(model, kind)
    lissom.save(model, tmp_path / "out")
    loaded = lissom.load(tmp_path / "out")
    same_bits(model, loaded, case)
    assert Record.of(loaded) == Record.of(model)


@pytest.mark.parametrize("case", HEADS + SWITCHES, ids=str)
def test_all_edits_through_transformers(case: Case, tmp_path: Path) -> None:
    model = case.model()
    edit(model, *(kind for kind in ORDER if kind != "KeepLayers" or case in HEADS))
    lissom.save(model, tmp_path / "out")
    loaded = getattr(transformers, case.head).from_pretrained(tmp_path / "out")
    same_bits(model, loaded, case)
    lissom.save(loaded, tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(tmp_path / "out" / "config.json")
