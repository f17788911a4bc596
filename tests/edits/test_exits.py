"""Exits as edits: what fits, what is refused, and that a model with exits is saved, loaded and edited further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import lissom
from lissom.edits import AddExits, Editor, KeepHeads, KeepHidden, KeepLayers, KeepNeurons, Pack, SetExits, exits_of
from lissom.errors import LissomError
from tests import tiny
from tests.contracts.test_edits import pack

CLASSIFIER = "AutoModelForSequenceClassification"
POINTS = {"few": (0.5, 0.55), "many": (0.36, 0.38)}


def made(variant: str = "bert", **changes: object) -> Editor:
    """A model whose texts leave at several layers."""
    editor = Editor(tiny.model(variant, CLASSIFIER, **changes))
    editor.apply(AddExits(layers=(1, 2), head="pooled", reads="mean", judge=True))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in editor.model.exits.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.4)
    return editor


def halves(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Thresholds at which about half of the rows leave at each exit."""
    exits = exits_of(model)
    assert exits is not None
    exits.collecting = True
    with torch.no_grad():
        scores = exits.scores(model(**inputs)["exit_states"])
    exits.collecting = False
    return scores.median(1).values + 1e-5


def refused(editor: Editor, edit: AddExits | SetExits | KeepLayers) -> str:
    """The cause with which it is refused; nothing is recorded."""
    before = editor.record
    with pytest.raises(LissomError) as caught:
        editor.apply(edit)
    assert caught.value.code == "LSM-451"
    assert editor.record == before
    return caught.value.cause


@pytest.mark.parametrize("layers", [(), (0,), (3,), (2, 1), (1, 1)])
def test_layers_that_are_no_choice(layers: tuple[int, ...]) -> None:
    assert "is not an ascending choice" in refused(Editor(tiny.model("bert", CLASSIFIER)), AddExits(layers=layers))


@pytest.mark.parametrize(
    ("variant", "head", "cause"),
    [
        ("bert", "AutoModel", "BertModel does not give whole texts a class or a number"),
        ("gpt2", CLASSIFIER, "GPT2ForSequenceClassification is no encoder that texts can leave before its last layer"),
        ("bart", CLASSIFIER, "BartForSequenceClassification is no encoder"),
    ],
)
def test_models_that_texts_cannot_leave(variant: str, head: str, cause: str) -> None:
    assert refused(Editor(tiny.model(variant, head)), AddExits(layers=(1,))).startswith(cause)


def test_several_labels_at_once() -> None:
    model = tiny.model("bert", CLASSIFIER, problem_type="multi_label_classification")
    assert "several labels" in refused(Editor(model), AddExits(layers=(1,)))


def test_exits_come_once_and_after_layers_are_dropped() -> None:
    editor = made()
    assert refused(editor, AddExits(layers=(1,))) == "the model has exits already"
    assert "none can be dropped" in refused(editor, KeepLayers(keep=(0, 1)))


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (SetExits(rule="guess", points=POINTS, use="few"), "there is no rule 'guess' of exits"),
        (SetExits(rule="entropy", points={"one": (1.0,)}, use="one"), "point 'one' is not 2 finite thresholds"),
        (SetExits(rule="entropy", points={"one": (1.0, float("nan"))}, use="one"), "point 'one' is not 2 finite"),
        (
            SetExits(rule="vote", constant=1e308, points={"one": (1.0, 1.0)}, use="one"),
            "constant 1e+308 is not 0 to 100",
        ),
        (SetExits(rule="entropy", points=POINTS, use="none"), "there is no point 'none'"),
    ],
)
def test_settings_that_do_not_fit(edit: SetExits, cause: str) -> None:
    assert refused(made(), edit).startswith(cause)


def test_rules_that_do_not_fit() -> None:
    editor = Editor(tiny.model("bert", CLASSIFIER, num_labels=1))
    settings = {"points": {"one": (0.5,)}, "use": "one"}
    assert refused(editor, SetExits(rule="patience", **settings)) == "the model has no exits"
    editor.apply(AddExits(layers=(1,)))
    assert "looks at classes" in refused(editor, SetExits(rule="confidence", **settings))
    assert "asks a judge" in refused(editor, SetExits(rule="learned", **settings))
    editor.apply(SetExits(rule="patience", **settings))
    assert editor.model.exits.constant == 0.1
    editor.apply(SetExits(rule="patience", constant=0.0, **settings))
    assert editor.model.exits.constant == 0.0


@pytest.mark.parametrize("variant", ["bert", "albert", "mpnet", "modernbert"])
def test_it_is_saved_and_loaded_and_cut_further(variant: str, tmp_path: Path) -> None:
    editor = made(variant)
    editor.apply(SetExits(rule="confidence", points=POINTS, use="many"))
    model, inputs = editor.model, tiny.batch(editor.model, rows=8)
    stack = editor.anatomy().stacks[0]
    neurons = tuple(tuple(range(1 + block.index, block.ffn.width)) for block in stack.blocks)
    editor.apply(KeepNeurons(neurons=neurons))
    editor.apply(KeepHeads(heads=((0, 2),) * len(stack.blocks)))
    [(packing, tensors)] = pack(editor.anatomy())
    editor.apply(
        Pack(linears=packing.linears), {name: one for name, one in tensors.items() if "embeddings" not in name}
    )
    thresholds = halves(model, inputs)
    with torch.inference_mode():
        answer = model(**inputs, exit_thresholds=thresholds)
    assert len(set(answer["exit_layer"].tolist())) > 1
    lissom.save(model, tmp_path / "out")
    for loaded in (
        lissom.load(tmp_path / "out"),
        getattr(transformers, CLASSIFIER).from_pretrained(tmp_path / "out").eval(),
    ):
        assert type(loaded) is type(model)
        with torch.inference_mode():
            again = loaded(**inputs, exit_thresholds=thresholds)
        assert torch.equal(again["logits"], answer["logits"])
        assert torch.equal(again["exit_layer"], answer["exit_layer"])
        exits = exits_of(loaded)
        assert exits is not None
        assert (exits.points, exits.use, exits.rule) == (POINTS, "many", "confidence")


def test_heads_are_as_wide_as_the_stream() -> None:
    editor = made()
    editor.apply(SetExits(rule="confidence", points=POINTS, use="many"))
    editor.apply(KeepHidden(channels=tuple(range(8, 32))))
    assert tuple(editor.model.exits.heads[0].dense.weight.shape) == (24, 24)
    assert editor.model.exits.judge.in_features == 24
    assert torch.isfinite(tiny.outputs(editor.model, tiny.batch(editor.model))).all()
