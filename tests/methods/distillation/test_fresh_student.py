"""Students built anew: the sizes asked for under every family's names, copies of tables, and sizes that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods import METHODS, Given, Stage
from lissom.methods.distillation.fresh_student import FreshStudent
from lissom.recipe import parameters
from tests import tiny

HEAD = "AutoModelForSequenceClassification"
SMALL = {"layers": 2, "hidden": 24, "heads": 2, "intermediate": 20}


def made(variant: str, head: str = HEAD, *, options: dict | None = None, seed: int = 0, **changes: object):
    torch.set_num_threads(1)
    editor = Editor(tiny.model(variant, head, **changes))
    step = FreshStudent(**(SMALL if options is None else options))
    step.check(editor.anatomy(), Given())
    step.apply(editor, Given(seed=seed))
    return editor.model


def test_it_is_in_the_table() -> None:
    assert METHODS["fresh_student"] is FreshStudent
    assert FreshStudent.stage is Stage.STUDENT


@pytest.mark.parametrize(("variant", "head"), [(v, h) for v in tiny.CONFIGS for h in tiny.heads(v)])
def test_every_family_and_head_has_the_sizes_asked_for(variant: str, head: str) -> None:
    original, student = tiny.model(variant, head), made(variant, head)
    assert type(student) is type(original)
    assert student.config.hidden_size == 24
    assert student.config.num_labels == original.config.num_labels
    for stack in dissect(student).stacks:
        assert len(stack.order) == 2
        for block in stack.blocks:
            own = {"qwen3", "mistral", "llama"} & {variant}
            assert (block.attention.heads, block.ffn.width) == (2, 20)
            assert block.attention.head_dim == 12 or own
            assert block.attention.q.in_features == 24
    assert parameters(student) < parameters(original)
    assert torch.isfinite(tiny.outputs(student, tiny.batch(student))).all()


def test_without_options_it_is_the_same_structure_with_other_weights() -> None:
    original, student = tiny.model("bert", HEAD), made("bert", options={"embeddings": False})
    assert {k: v.shape for k, v in student.state_dict().items()} == {
        k: v.shape for k, v in original.state_dict().items()
    }
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(student.state_dict()[weight], original.state_dict()[weight])


def test_tables_are_copied_where_the_width_allows() -> None:
    original, student = tiny.model("bert", HEAD), made("bert", options={"layers": 1, "intermediate": 16})
    for path in dissect(original).embeddings:
        assert torch.equal(student.get_submodule(path).weight, original.get_submodule(path).weight)
    fresh = made("bert", options={"layers": 1, "embeddings": False})
    words = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(fresh.state_dict()[words], original.state_dict()[words])
    narrow, factored = made("bert"), made("albert")  # ALBERT's table has a width of its own
    assert narrow.get_input_embeddings().weight.shape == (tiny.VOCABULARY, 24)
    assert torch.equal(factored.get_input_embeddings().weight, tiny.model("albert", HEAD).get_input_embeddings().weight)


def test_tied_tables_stay_tied() -> None:
    student = made("bert", "AutoModelForMaskedLM", options={"layers": 1})
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


def test_more_layers_than_before() -> None:
    assert len(dissect(made("modernbert", options={"layers": 5})).stacks[0].order) == 5
    assert made("modernbert", options={"layers": 5}).config.layer_types[3] == "sliding_attention"


def test_heads_with_a_size_of_their_own_keep_it() -> None:
    student = made("qwen3", options={"heads": 2}, head_dim=10)
    assert {block.attention.head_dim for block in dissect(student).stacks[0].blocks} == {10}


def test_the_seed_decides() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = made("bert"), made("bert"), made("bert", seed=1)
    weight = "classifier.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    torch.manual_seed(5)
    FreshStudent(layers=1).apply(Editor(tiny.model("bert", HEAD)), Given())
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("bert", {"hidden": 30}, "LSM-318 4 heads do not divide a hidden size of 30. Give heads that divide 30"),
        ("gpt2", {"heads": 5}, "LSM-318 5 heads do not divide a hidden size of 32."),
        ("t5", {"heads": 3}, "LSM-318 3 heads do not divide a hidden size of 32."),
        ("bart", {"heads": 3}, "LSM-318 3 heads do not divide a hidden size of 32."),
        ("llama", {"heads": 1}, "LSM-318 2 query heads use one key/value head, and 1 is no multiple of that."),
        ("llama", {"hidden": 12, "heads": 4}, "LSM-318 rotary positions turn pairs of numbers, and a head of 3 has 3"),
    ],
)
def test_sizes_that_do_not_fit(variant: str, options: dict, message: str) -> None:
    with pytest.raises(LissomError) as caught:
        FreshStudent(**options).check(dissect(tiny.model(variant, HEAD)), Given())
    assert message in str(caught.value)


def test_an_edited_original_gives_a_whole_student(tmp_path: Path) -> None:
    editor = Editor(tiny.model("bert", HEAD))
    METHODS["prune_neurons"](ratio=0.5).apply(editor, Given())
    FreshStudent(layers=1).apply(editor, Given())
    assert editor.record.edits == ()
    lissom.save(editor.model, tmp_path / "out")
    inputs = tiny.batch(editor.model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(editor.model, inputs))
