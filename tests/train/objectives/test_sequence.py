import pytest
import torch

from lissom.anatomy import dissect
from lissom.errors import LissomError
from lissom.train import continuation
from lissom.train.objectives.base import Means
from lissom.train.objectives.logits import Logits
from lissom.train.objectives.sequence import SequenceLevel
from lissom.train.run import train
from tests import tiny
from tests.train.tiny_rows import rows

CAUSAL = "AutoModelForCausalLM"
OBJECTIVE = SequenceLevel(prompt=3, new_tokens=5)


def means(work, *teachers):
    return Means(
        teachers=teachers,
        work=work,
        device=torch.device("cpu"),
        bf16=False,
        versions=("1",),
        report=lambda phrase, fraction: None,
    )


def likeliest(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids


def test_rows_hold_the_teachers_likeliest_continuations(tmp_path):
    torch.set_num_threads(1)
    teacher, data = tiny.model("gpt2", CAUSAL, seed=1), rows("language_modelling", count=6)
    made = OBJECTIVE.rewrite(data, means(tmp_path, teacher))
    for before, after in zip(data, made, strict=True):
        assert after["input_ids"] == likeliest(teacher, before["input_ids"][:3], 5)
        assert after["labels"] == [-100] * 3 + after["input_ids"][3:]


def test_texts_are_made_once_and_again_when_anything_changes(tmp_path, monkeypatch):
    calls = []
    real = continuation.continued
    monkeypatch.setattr(continuation, "continued", lambda *a, **b: calls.append(1) or real(*a, **b))
    teacher, data = tiny.model("gpt2", CAUSAL, seed=1), rows("language_modelling", count=6)
    first = OBJECTIVE.rewrite(data, means(tmp_path, teacher))
    again = OBJECTIVE.rewrite(data, means(tmp_path, teacher))
    assert first.to_list() == again.to_list()
    assert len(calls) == 1
    OBJECTIVE.rewrite(data, means(tmp_path, tiny.model("gpt2", CAUSAL, seed=2)))
    SequenceLevel(prompt=3, new_tokens=4).rewrite(data, means(tmp_path, teacher))
    SequenceLevel(prompt=3, new_tokens=5, beams=2).rewrite(data, means(tmp_path, teacher))
    OBJECTIVE.rewrite(rows("language_modelling", count=5), means(tmp_path, teacher))
    assert len(calls) == 5
    for file in tmp_path.iterdir():
        assert file.suffix == ".safetensors"
        file.write_bytes(file.read_bytes()[:-4])
    assert OBJECTIVE.rewrite(data, means(tmp_path, teacher)).to_list() == first.to_list()
    assert len(calls) == 6, "a torn file is made anew"


def test_beams_find_likelier_texts():
    torch.set_num_threads(1)
    teacher = tiny.model("gpt2", CAUSAL, seed=1)
    prompts = [one[:3] for one in rows("language_modelling", count=12)["input_ids"]]

    def likelihood(beams):
        total = 0.0
        for prompt in prompts:
            (new,) = continuation.continued(teacher, [prompt], new_tokens=4, sample=False, beams=beams)
            ids = torch.tensor([[*prompt, *new]])
            with torch.no_grad():
                said = teacher(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            total += float(said[len(prompt) - 1 :].mean())
        return total

    assert likelihood(4) > likelihood(1)


def loss_on_teachers_texts(model, teacher, tmp_path):
    made = OBJECTIVE.rewrite(rows("language_modelling"), means(tmp_path, teacher))
    total = 0.0
    for one in made:
        with torch.no_grad():
            total += float(model(**{name: torch.tensor([value]) for name, value in one.items()}).loss)
    return total / len(made)


@pytest.mark.parametrize("more", [{}, {"logits": Logits()}], ids=["alone", "with-logits"])
def test_the_student_learns_to_say_it_and_resumes_to_the_same_bytes(tmp_path, more):
    torch.set_num_threads(1)
    teacher = tiny.model("gpt2", CAUSAL, seed=1)
    learn = {"sequence": OBJECTIVE, **more}

    def run(work, **changes):
        model = tiny.model("gpt2", CAUSAL)
        train(
            model,
            rows("language_modelling"),
            learn,
            teachers=[teacher],
            epochs=2,
            batch_size=8,
            learning_rate=3e-3,
            work=work,
            save_seconds=0,
            **changes,
        )
        return model

    def stop(phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt

    before = loss_on_teachers_texts(tiny.model("gpt2", CAUSAL), teacher, tmp_path)
    whole = run(tmp_path / "whole")
    assert loss_on_teachers_texts(whole, teacher, tmp_path) < before - 0.5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=stop)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_teacher_is_not_asked_while_the_student_learns(tmp_path):
    teacher = tiny.model("gpt2", CAUSAL, seed=1)
    run = {"epochs": 1, "batch_size": 8, "work": tmp_path}
    train(tiny.model("gpt2", CAUSAL), rows("language_modelling"), {"sequence": OBJECTIVE}, teachers=[teacher], **run)
    asked = []
    teacher.register_forward_hook(lambda module, args, output: asked.append(1))
    train(tiny.model("gpt2", CAUSAL, 5), rows("language_modelling"), {"sequence": OBJECTIVE}, teachers=[teacher], **run)
    assert not asked, "the texts are on disk"


def test_what_cannot_be_learnt_so():
    bert = dissect(tiny.model("bert", "AutoModelForMaskedLM"))
    with pytest.raises(LissomError, match="LSM-317 sequence: sequence learns from the texts of a teacher, and there"):
        OBJECTIVE.check(bert, None, ())
    with pytest.raises(LissomError, match="LSM-319 sequence: BertForMaskedLM does not go on with a text"):
        OBJECTIVE.check(bert, None, (tiny.model("gpt2", CAUSAL),))
    with pytest.raises(LissomError, match="LSM-319 sequence: prompt and new_tokens are 96 tokens, GPT2LMHeadModel"):
        SequenceLevel().check(dissect(tiny.model("gpt2", CAUSAL)), None, (tiny.model("gpt2", CAUSAL),))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_answers_of_an_encoder_decoder_take_the_place_of_targets(tmp_path, family):
    teacher = tiny.model(family, "AutoModelForSeq2SeqLM", seed=1)
    data = rows("language_modelling", count=6)
    made = OBJECTIVE.rewrite(data, means(tmp_path, teacher))
    for before, after in zip(data, made, strict=True):
        assert after["input_ids"] == before["input_ids"]
        said = [teacher.config.decoder_start_token_id]
        for _ in range(5):
            given = {"input_ids": torch.tensor([before["input_ids"]]), "decoder_input_ids": torch.tensor([said])}
            with torch.no_grad():
                said.append(int(teacher(**given).logits[0, -1].argmax()))
            if said[-1] == teacher.config.eos_token_id:
                break
        if family == "bart" and len(said) == 6:
            said[-1] = teacher.config.forced_eos_token_id
        assert after["labels"] == said[1:]


def test_both_write_in_the_same_way():
    t5, gpt2 = tiny.model("t5", "AutoModelForSeq2SeqLM"), tiny.model("gpt2", CAUSAL)
    OBJECTIVE.check(dissect(t5), None, [t5])
    with pytest.raises(LissomError, match="LSM-319 sequence: T5ForConditionalGeneration does not go on with a text"):
        OBJECTIVE.check(dissect(gpt2), None, [t5])
    bart = tiny.model("bart", "AutoModelForSeq2SeqLM")
    with pytest.raises(LissomError, match="LSM-319 sequence: new_tokens are 65 tokens, BartForCond"):
        SequenceLevel(new_tokens=65).check(dissect(bart), None, [bart])
