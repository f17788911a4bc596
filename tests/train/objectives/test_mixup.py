import pytest
import torch
from torch.nn import functional

from lissom.anatomy import dissect
from lissom.data.batches import pad
from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.mixup import Mixup
from lissom.train.run import train
from tests import tiny
from tests.train.tiny_rows import rows

HEAD = "AutoModelForSequenceClassification"
NOTHING = torch.nn.Module()
FAMILIES = ["bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert"]


def asked(student, teacher, inputs, embed=None, seen=None):
    """`Answers` as the engine gives them."""
    texts = {name: one for name, one in inputs.items() if name != "labels"}

    def answer(model):
        if embed is None:
            return model(**texts)
        return model(inputs_embeds=embed(model), **{name: one for name, one in texts.items() if name != "input_ids"})

    if seen is not None:
        seen.append((dict(inputs), embed))
    with torch.no_grad():
        taught = answer(teacher)
    return Answers(
        inputs=inputs,
        student=answer(student),
        teacher=taught,
        regression=student.config.problem_type == "regression",
        ask=lambda other, embed=None: asked(student, teacher, other, embed, seen),
    )


def drawn(seed, count, alpha=0.4):
    torch.manual_seed(seed)
    return torch.randperm(count), torch.distributions.Beta(alpha, alpha).sample((count,))


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_the_loss_by_its_formula(loss):
    torch.set_num_threads(1)
    student, teacher = (tiny.model("bert", HEAD, seed, hidden_size=32 * (1 + seed)) for seed in (0, 1))
    batch, seen = pad(rows(count=5).to_list(), 0), []
    order, share = drawn(7, 5)
    torch.manual_seed(7)
    value = Mixup(loss=loss, temperature=2.0, hard=0.5).value(asked(student, teacher, batch, seen=seen), NOTHING)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    both = seen[-1][0]
    assert torch.equal(both["attention_mask"].bool(), mask | mask[order])

    def said(model):
        words, part = model.get_input_embeddings().weight, share[:, None, None]
        mixed = part * words[ids] + (1 - part) * words[ids[order]]
        with torch.no_grad():
            return model(inputs_embeds=mixed, attention_mask=both["attention_mask"]).logits

    s, t, y = said(student), said(teacher), batch["labels"]
    if loss == "mse":
        wanted = (s - t).square().mean()
    else:
        p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
        wanted = 4 * (p * (p / q).log()).sum(-1).mean()
    crossed = [-s.log_softmax(-1).gather(1, one[:, None])[:, 0] for one in (y, y[order])]
    wanted = wanted + 0.5 * (share * crossed[0] + (1 - share) * crossed[1]).mean()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_numbers_are_mixed_as_well():
    labels = {"num_labels": 1, "problem_type": "regression"}
    student, teacher = (tiny.model("bert", HEAD, seed, **labels) for seed in (0, 1))
    batch, seen = pad(rows("regression", count=5).to_list(), 0), []
    order, share = drawn(7, 5)
    torch.manual_seed(7)
    hard = Mixup().value(asked(student, teacher, batch, seen=seen), NOTHING)
    torch.manual_seed(7)
    soft = Mixup(hard=0.0).value(asked(student, teacher, batch), NOTHING)
    mixed = share * batch["labels"] + (1 - share) * batch["labels"][order]
    scores = asked(student, teacher, *seen[-1]).student.logits[:, 0]
    assert (hard - soft).item() == pytest.approx(functional.mse_loss(scores, mixed).item(), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_mixed_with_itself_is_itself(family, monkeypatch):
    """Embeddings instead of tokens change nothing, in every family."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "randperm", torch.arange)
    student, teacher = (tiny.model(family, HEAD, seed) for seed in (0, 1))
    batch = pad(rows(count=5).to_list(), 1 if family == "roberta" else 0)
    plain = asked(student, teacher, batch)
    value = Mixup(hard=0.0).value(plain, NOTHING)
    wanted = functional.mse_loss(plain.student.logits, plain.taught.logits)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_student_learns_and_resumes_to_the_same_bytes(tmp_path):
    torch.set_num_threads(1)
    teacher = tiny.model("bert", HEAD, seed=1)

    def run(work, **changes):
        model = tiny.model("bert", HEAD)
        options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_seconds": 0, **changes}
        train(model, options.pop("rows", None) or rows(), {"mixup": Mixup()}, teachers=[teacher], work=work, **options)
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

    def distance(model):
        inputs = {name: one for name, one in pad(rows().to_list(), 0).items() if name != "labels"}
        with torch.no_grad():
            return functional.mse_loss(model(**inputs).logits, teacher(**inputs).logits).item()

    longer = run(tmp_path / "longer", rows=rows(""), epochs=5, learning_rate=5e-3)
    assert distance(longer) < distance(tiny.model("bert", HEAD)) / 2


@pytest.mark.parametrize(
    ("family", "head", "message"),
    [
        (
            "gpt2",
            HEAD,
            "LSM-319 mixup: GPT2ForSequenceClassification is no encoder that answers once a text. Use",
        ),
        ("bart", HEAD, "BartForSequenceClassification is no encoder that answers once a text."),
        (
            "bert",
            "AutoModelForTokenClassification",
            "BertForTokenClassification is no encoder that answers once",
        ),
    ],
)
def test_what_cannot_be_learnt_so(family, head, message):
    with pytest.raises(LissomError) as caught:
        Mixup().check(dissect(tiny.model(family, head)), None, ())
    assert message in str(caught.value)
