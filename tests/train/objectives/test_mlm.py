import pytest
import torch

import lissom
from lissom.anatomy import dissect
from lissom.errors import LissomError
from lissom.recipe import Recipe
from lissom.store import load
from lissom.train.objectives import OBJECTIVES, Answers
from lissom.train.objectives.mlm import MaskedTokens
from lissom.train.run import train
from tests import masked, tiny
from tests.train.tiny_rows import rows

HEAD = "AutoModelForMaskedLM"
OBJECTIVE = MaskedTokens()
TEXTS = {
    name: {"text": [" ".join("w5" if (i + j) % 5 else f"w{10 + i}" for j in range(6 + i % 5)) for i in range(count)]}
    for name, count in (("train", 60), ("test", 12))
}


def recipe(steps):
    return Recipe.parse(f"{{lissom: 1, steps: [{steps}]}}", "here")


def test_the_loss_is_the_cross_entropy_with_what_was_hidden():
    model = tiny.model("bert", HEAD)
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(4, 99, (4, 20)), "attention_mask": torch.ones(4, 20).long()}
    inputs = OBJECTIVE.prepare(batch, masked.tokenizer())
    asked = inputs["labels"] != -100
    assert 0 < int(asked.sum()) < 40
    answered = model(**inputs)
    value = OBJECTIVE.value(Answers(inputs=inputs, student=answered), torch.nn.Module())
    wanted = -answered.logits.log_softmax(-1)[asked].gather(1, batch["input_ids"][asked][:, None]).mean()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_batch_without_a_hidden_token_costs_nothing():
    inputs = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.full((1, 2), -100)}
    answered = tiny.model("bert", HEAD)(**inputs)
    assert OBJECTIVE.value(Answers(inputs=inputs, student=answered), torch.nn.Module()).item() == 0.0


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert"])
def test_the_soft_form_of_distilbert_learns_and_resumes_to_the_same_bytes(tmp_path, family):
    torch.set_num_threads(1)
    teacher = tiny.model(family, HEAD, seed=1)
    seen = []
    teacher.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]) if not module.training else None, with_kwargs=True
    )
    learn = {"mlm": OBJECTIVE, "logits": OBJECTIVES["logits"](), "hidden": OBJECTIVES["hidden"](layers="last")}

    def run(work, **changes):
        model = tiny.model(family, HEAD)
        options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_seconds": 0, "work": work, **changes}
        train(model, rows(""), learn, teachers=[teacher], tokenizer=masked.tokenizer(), **options)
        return model

    def stop(phrase, fraction):
        if round(10 * fraction) == 6:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    assert sum(int((one == masked.MASK).sum()) for one in seen) > 10, "the teacher sees the hidden tokens too"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=stop)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_compress_trains_and_measures_a_masked_language_model(tmp_path):
    torch.set_num_threads(1)
    steps = "{keep_layers: {keep: 2}}, {tune: {epochs: 6, batch_size: 8, learning_rate: 3.0e-3, learn: {mlm: {}}}}"
    model = tiny.model("bert", HEAD)
    done = lissom.compress(
        model, recipe(steps), data=TEXTS, tokenizer=masked.tokenizer(), max_length=16, work=tmp_path / "work"
    )
    before, after = (row.reading("accuracy").value for row in done.rows)
    assert after > max(0.5, before), "four words of five are the same"
    assert done.rows[1].reading("accuracy").how.startswith("Share of hidden tokens that the model names: 15 %")
    done.save(tmp_path / "out")
    batch = tiny.batch(done.model)
    assert torch.equal(tiny.outputs(load(tmp_path / "out"), batch), tiny.outputs(done.model, batch))


def test_running_text_is_packed_with_its_special_tokens():
    from lissom.data import Task, encode, load_data

    data = load_data({"train": {"text": ["w5 w6 w7", "w8 w9"]}})
    task = Task(kind="masked_language_modelling", metric="accuracy")
    made = encode(data.split("train"), masked.tokenizer(), task, 6)
    assert made.to_list() == [
        {"input_ids": [1, 5, 6, 7, 2, 1], "attention_mask": [1] * 6},
        {"input_ids": [8, 9, 2], "attention_mask": [1] * 3},
    ]


def test_what_cannot_be_learnt_so():
    bert = dissect(tiny.model("bert", HEAD))
    with pytest.raises(LissomError) as caught:
        OBJECTIVE.check(dissect(tiny.model("gpt2", "AutoModelForCausalLM")), masked.tokenizer(), ())
    assert str(caught.value) == (
        "LSM-319 mlm: GPT2LMHeadModel does not name hidden tokens. Use a masked language model; for a causal one task "
        "is its pretraining."
    )
    with pytest.raises(LissomError, match="LSM-319 mlm: the tokenizer has no mask token"):
        OBJECTIVE.check(bert, tiny.tokenizer(), ())
    with pytest.raises(LissomError, match="LSM-319 mlm: there is no tokenizer to hide tokens with"):
        OBJECTIVE.prepare({"input_ids": torch.tensor([[5]])}, None)


def test_a_masked_teacher_of_a_causal_model_is_refused():
    causal = tiny.model("gpt2", "AutoModelForCausalLM")
    with pytest.raises(LissomError, match="LSM-826 data: BertForMaskedLM has no head for language modelling"):
        lissom.compress(
            causal, recipe("tune"), data=TEXTS, tokenizer=masked.tokenizer(), teacher=tiny.model("bert", HEAD)
        )
