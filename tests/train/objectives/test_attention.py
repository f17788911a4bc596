import math

import pytest
import torch
from transformers.utils.generic import ModelOutput

from lissom.errors import LissomError
from lissom.methods.distillation.tune import Tune
from lissom.train.objectives import Answers
from lissom.train.objectives.attention import Attention, scores
from lissom.train.projections import Projections, Watch
from lissom.train.run import train
from tests import tiny
from tests.train.objectives.taught import HEAD, learned
from tests.train.tiny_rows import rows

MASK = torch.tensor([[1, 1, 0]])
FAMILIES = ["bert", "roberta", "distilbert", "albert", "modernbert", "gpt2", "llama"]


def answers(student, teacher, mask=MASK, **more):
    both = (ModelOutput(**one) for one in (student, teacher))
    return Answers(inputs={"input_ids": mask, "attention_mask": mask}, student=next(both), teacher=next(both), **more)


def looked(*layers):
    """Maps of layers, each (heads, queries, keys) of one text."""
    return {"attentions": tuple(torch.tensor([one]) for one in layers)}


def projected(q, k, heads=1, kv_heads=1, causal=False):
    """One layer of one text from its queries and keys (tokens, heads · head_dim)."""
    q, k = torch.tensor([q]), torch.tensor([k])
    dim = q.shape[-1] // heads
    return {"projections": (Projections(q=q, k=k, v=k, heads=heads, kv_heads=kv_heads, head_dim=dim, causal=causal),)}


def loss(objective, both):
    return objective.value(both, objective.begin(both)).item()


def test_what_it_reads_follows_what_it_compares():
    assert Attention().reads == {"projections"}
    assert Attention(of="maps").reads == {"attentions"}


STUDENT = projected([[2.0], [1.0], [9.0]], [[1.0], [3.0], [9.0]])  # scores [[2, 6], [1, 3]]
TEACHER = projected([[1.0], [2.0], [5.0]], [[1.0], [0.0], [5.0]])  # scores [[1, 0], [2, 0]]


def test_mse_of_scores_by_hand():
    assert loss(Attention(), answers(STUDENT, TEACHER)) == pytest.approx((1 + 36 + 1 + 9) / 4)


def test_a_causal_query_sees_no_later_key():
    causal = {"projections": (Projections(**{**vars(STUDENT["projections"][0]), "causal": True}),)}
    assert loss(Attention(), answers(causal, TEACHER)) == pytest.approx((1 + 1 + 9) / 3)


def test_kl_of_scores_by_hand():
    flat = projected([[0.0], [0.0], [9.0]], [[1.0], [3.0], [9.0]])
    sharp = projected([[math.log(3)], [0.0], [9.0]], [[1.0], [0.0], [9.0]])  # [3/4, 1/4] and [1/2, 1/2]
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert loss(Attention(loss="kl"), answers(flat, sharp)) == pytest.approx(expected, rel=1e-5)


def test_scores_are_divided_by_the_root_of_the_head_width_and_grouped_keys_repeated():
    one = projected([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]], [[1.0, 0.0, 0.0, 1.0]], heads=4, kv_heads=2)
    found = scores(one["projections"][0]).flatten() * math.sqrt(2)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 6.0, 8.0]))


def test_mse_of_maps_by_hand():
    student = looked([[[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]]])
    teacher = looked([[[0.4, 0.6, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]])
    assert loss(Attention(of="maps"), answers(student, teacher)) == pytest.approx((0.01 + 0.01) / 4)


def test_kl_of_maps_by_hand():
    student = looked([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    teacher = looked([[[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    expected = (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 2
    assert loss(Attention(of="maps", loss="kl"), answers(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_what_dropout_hides_is_left_out():
    # the student has 1/2, 1/4, 1/4 and lost the last; of the teacher's 0.2, 0.6, 0.2 the rest is 1/4, 3/4
    mask = torch.ones(1, 3, dtype=torch.int64)
    same = [[1.0, 0.0, 0.0]] * 2
    student, teacher = looked([[[1.0, 0.5, 0.0], *same]]), looked([[[0.2, 0.6, 0.2], *same]])
    kl = 0.25 * math.log(0.25 / (2 / 3)) + 0.75 * math.log(0.75 / (1 / 3))
    both = answers(student, teacher, mask)
    assert loss(Attention(of="maps", loss="kl"), both) == pytest.approx(kl / 3, rel=1e-5)
    assert loss(Attention(of="maps"), both) == pytest.approx(2 * (2 / 3 - 1 / 4) ** 2 / 4, rel=1e-5)


def test_heads_are_compared_one_by_one_or_as_their_mean():
    ends = [[[1.0, 0.0, 0.0]] * 3, [[0.0, 1.0, 0.0]] * 3]
    student, teacher = looked([[[0.75, 0.25, 0.0]] * 3] * 2), looked(ends)
    both = answers(student, teacher)
    assert loss(Attention(of="maps"), both) == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert loss(Attention(of="maps", heads="mean"), both) == pytest.approx(0.25**2)


def test_different_heads_are_refused_or_averaged():
    both = answers(looked([[[1.0, 0.0, 0.0]] * 3]), looked([[[1.0, 0.0, 0.0]] * 3] * 2))
    with pytest.raises(LissomError) as caught:
        Attention(of="maps").begin(both)
    assert str(caught.value) == (
        "LSM-319 attention.heads: student layer 1 has 1 heads, teacher layer 1 has 2. Use heads: mean, or relations."
    )
    assert loss(Attention(of="maps", heads="mean"), both) == pytest.approx(0.0)


def test_layers_are_counted_from_one():
    one, other = [[[1.0, 0.0, 0.0]] * 3], [[[0.0, 1.0, 0.0]] * 3]
    both = answers(looked([[[0.5, 0.5, 0.0]] * 3]), looked(one, other, one, other))
    assert loss(Attention(of="maps", layers="last"), both) == pytest.approx(0.25)
    half = answers(looked(one, other), looked(other, one, one, other))  # 1 -> 2, 2 -> 4
    assert loss(Attention(of="maps"), half) == pytest.approx(0.0)
    assert loss(Attention(of="maps", layers=((1, 1), (2, 4))), half) == pytest.approx(1 / 2)
    with pytest.raises(LissomError, match=r"LSM-319 attention.layers: \[3, 1\] is outside \[1, 1\] to \[2, 4\]"):
        Attention(of="maps", layers=((3, 1),)).begin(half)
    with pytest.raises(LissomError, match=r"layers\.0\.1"):
        Tune(learn={"attention": {"layers": [[1, 0]]}})._built()


def test_a_model_that_gives_no_attention():
    nothing = answers({"attentions": (None,)}, looked([[[1.0, 0.0, 0.0]] * 3]))
    with pytest.raises(LissomError, match="LSM-715 attention: the model gives no attention of its layers"):
        Attention(of="maps").begin(nothing)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "opt"])
def test_scores_are_those_that_the_model_softmaxes(family):
    """In families without rotary positions."""
    model = tiny.model(family, HEAD)
    model.set_attn_implementation("eager")
    inputs = tiny.batch(model, rows=1)
    with torch.no_grad(), Watch(model) as watch:
        watch.start()
        maps = model(**inputs, output_attentions=True).attentions
        layers = watch.take()
    assert len(layers) == len(maps) == 3
    for one, found in zip(layers, maps, strict=True):
        seen = torch.ones(9, 9, dtype=torch.bool)
        seen = seen.tril() if one.causal else seen
        ours = torch.softmax(scores(one).masked_fill(~seen, -torch.inf), dim=-1)
        torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", [Attention(), Attention(of="maps", loss="kl", heads="mean")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrow_and_shallow_student_looks_where_its_teacher_does(tmp_path, family, objective):
    names = {"distilbert": ("dim", "n_layers"), "gpt2": ("n_embd", "n_layer")}
    width, depth = names.get(family, ("hidden_size", "num_hidden_layers"))
    dropout = dict.fromkeys(("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"), 0.0)
    student, teacher = tiny.model(family, HEAD, **{width: 16, depth: 2}, **dropout), tiny.model(family, HEAD, seed=1)
    values = learned(tmp_path, student, teacher, objective)
    assert values[-1] < 0.9 * values[0]


def test_a_copy_has_nothing_to_learn_in_spite_of_dropout(tmp_path):
    torch.set_num_threads(1)
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    student, teacher = (tiny.model("bert", HEAD, **drops, num_hidden_layers=1) for _ in range(2))
    values = learned(tmp_path, student, teacher, Attention(of="maps", loss="kl"))
    assert values[0] < 1e-6


@pytest.mark.parametrize("of", ["scores", "maps"])
@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("bert", "AutoModelForTokenClassification", "tagging"),
        ("llama", "AutoModelForCausalLM", "language_modelling"),
    ],
)
def test_other_tasks(tmp_path, family, head, kind, of):
    student, teacher = tiny.model(family, head), tiny.model(family, head, seed=1)
    attention = student.config._attn_implementation
    values = learned(tmp_path, student, teacher, Attention(of=of), kind=kind)
    assert values[-1] < values[0]
    assert student.config._attn_implementation == attention


def test_heads_of_both_are_checked_before_training(tmp_path):
    student, teacher = tiny.model("bert", HEAD, num_attention_heads=2), tiny.model("bert", HEAD)
    with pytest.raises(
        LissomError, match=r"LSM-319 attention\.heads: student layer 1 has 2 heads, teacher layer 1 has 4"
    ):
        train(student, rows(), {"attention": Attention()}, teachers=[teacher], work=tmp_path)


def test_an_encoder_decoder_has_three_rows_of_maps_by_hand():
    one, other = [[[1.0, 0.0, 0.0]] * 3], [[[0.0, 1.0, 0.0]] * 3]

    def maps(**rows):
        made = {f"{name}_attentions": looked(*layers)["attentions"] for name, layers in rows.items()}
        return {"encoder_last_hidden_state": torch.zeros(1), **made}

    student = maps(encoder=[one], decoder=[other], cross=[other])
    teacher = maps(encoder=[other, one], decoder=[one, other], cross=[other, one])
    assert loss(Attention(of="maps"), answers(student, teacher)) == pytest.approx((0 + 0 + 1) / 3)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_encoder_decoders_learn_where_all_heads_look(tmp_path, family):
    student, teacher = tiny.model(family, HEAD), tiny.model(family, HEAD, seed=1)
    values = learned(tmp_path, student, teacher, Attention(of="maps"))
    assert values[-1] < 0.9 * values[0]
