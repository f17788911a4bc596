import pytest
import torch

from lissom.anatomy import dissect
from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.logits import Logits
from lissom.train.objectives.on_policy import OnPolicy
from lissom.train.run import train
from tests import tiny
from tests.train.tiny_rows import rows

CAUSAL = "AutoModelForCausalLM"
NOTHING = torch.nn.Module()
BATCH = pad(rows("language_modelling", count=5).to_list(), 0)


def asked(student, teacher, seen):
    """`Answers` as the engine gives them, and a list of the batches that were asked about."""

    def ask(inputs, embed=None):
        seen.append(dict(inputs))
        texts = {name: one for name, one in inputs.items() if name != "labels"}
        with torch.no_grad():
            taught = teacher(**texts)
        return Answers(inputs=inputs, student=student(**texts), teacher=taught, next_token=True, ask=ask, model=student)

    return ask(BATCH)


def test_the_student_goes_on_and_its_own_tokens_are_judged():
    torch.set_num_threads(1)
    student, teacher, seen = tiny.model("gpt2", CAUSAL), tiny.model("gpt2", CAUSAL, seed=1), []
    answers = asked(student, teacher, seen)
    torch.manual_seed(3)
    value = OnPolicy(share=1.0, prompt=3, new_tokens=4, loss="reverse").value(answers, NOTHING)
    made = seen[-1]
    assert made["input_ids"][:, :3].tolist() == BATCH["input_ids"][:, :3].tolist()
    total, count = 0.0, 0  # KL(q, p) at each new token, by its definition
    for ids, mask, labels in zip(made["input_ids"], made["attention_mask"], made["labels"], strict=True):
        real = ids[mask.bool()]
        assert 1 <= len(real) - 3 <= 4
        assert labels[mask.bool()].tolist() == [-100] * 3 + real[3:].tolist()
        with torch.no_grad():
            q, p = (one(input_ids=real[None]).logits[0].softmax(-1) for one in (student, teacher))
        for at in range(2, len(real) - 1):
            total += float((q[at] * (q[at] / p[at]).log()).sum())
            count += 1
    assert value.item() == pytest.approx(total / count, rel=1e-4)
    value.backward()
    assert student.lm_head.weight.grad.abs().sum() > 0


def test_without_a_share_the_data_is_judged():
    student, teacher, seen = tiny.model("gpt2", CAUSAL), tiny.model("gpt2", CAUSAL, seed=1), []
    answers = asked(student, teacher, seen)
    value = OnPolicy(share=0.0, loss="js", temperature=1.5).value(answers, NOTHING)
    assert len(seen) == 1
    assert value.item() == pytest.approx(Logits(loss="js", temperature=1.5).value(answers, NOTHING).item())


def test_the_share_is_a_probability():
    student, teacher, seen = tiny.model("gpt2", CAUSAL), tiny.model("gpt2", CAUSAL, seed=1), []
    answers = asked(student, teacher, seen)
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(60):
            OnPolicy(share=0.25, prompt=2, new_tokens=1).value(answers, NOTHING)
    assert (len(seen) - 1) / 60 == pytest.approx(0.25, abs=0.12)


def test_a_resumed_run_draws_the_same_texts(tmp_path):
    torch.set_num_threads(1)
    teacher = tiny.model("llama", CAUSAL, seed=1)

    def run(work, **changes):
        model = tiny.model("llama", CAUSAL)
        learn = {"on_policy": OnPolicy(prompt=3, new_tokens=4)}
        options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_seconds": 0, **changes}
        train(model, rows("language_modelling"), learn, teachers=[teacher], work=work, **options)
        return model

    def stop(phrase, fraction):
        if round(10 * fraction) == 7:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=stop)
    resumed, other = run(tmp_path / "cut"), run(tmp_path / "other", seed=1)

    def same(one):
        return all(torch.equal(a, b) for a, b in zip(whole.parameters(), one.parameters(), strict=True))

    assert same(resumed)
    assert not same(other)
    assert not whole.training


def test_it_brings_the_student_to_the_teacher(tmp_path):
    torch.set_num_threads(1)
    student, teacher = (tiny.model("gpt2", CAUSAL, seed) for seed in (0, 1))

    def distance():
        with torch.no_grad():
            inputs = {name: one for name, one in BATCH.items() if name != "labels"}
            both = Answers(inputs=inputs, student=student(**inputs), teacher=teacher(**inputs), next_token=True)
        return Logits(temperature=1.0, loss="reverse").value(both, NOTHING).item()

    before = distance()
    learn = {"on_policy": OnPolicy(prompt=3, new_tokens=4, share=1.0)}
    train(
        student,
        rows("language_modelling"),
        learn,
        teachers=[teacher],
        epochs=8,
        batch_size=8,
        learning_rate=5e-3,
        work=tmp_path,
    )
    assert distance() < before * 0.7


def test_what_cannot_be_learnt_so():
    gpt2, t5 = tiny.model("gpt2", CAUSAL), tiny.model("t5", "AutoModelForSeq2SeqLM")
    short = OnPolicy(prompt=3, new_tokens=4)
    with pytest.raises(LissomError, match="LSM-319 on_policy: T5ForConditionalGeneration does not go on with a text"):
        short.check(dissect(t5), None, (gpt2,))
    with pytest.raises(LissomError, match="LSM-319 on_policy: prompt and new_tokens are 96 tokens, GPT2LMHeadModel"):
        OnPolicy().check(dissect(gpt2), None, (gpt2,))
    with pytest.raises(LissomError, match="LSM-319 on_policy: mix belongs to js, skew, skew_reverse, and the loss is"):
        OnPolicy(prompt=3, new_tokens=4, mix=0.2).check(dissect(gpt2), None, (gpt2,))
    with pytest.raises(LissomError, match="the student answers with 99 values, the teacher with 50"):
        short.begin(asked_of_other(gpt2))


def asked_of_other(student):
    inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3)}
    other = tiny.model("gpt2", CAUSAL, vocab_size=50)
    return Answers(inputs=inputs, student=student(**inputs), teacher=other(**inputs), next_token=True)
