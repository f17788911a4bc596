import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.errors import LissomError
from lissom.train.objectives import Answers
from lissom.train.objectives.embedding import Embedding
from tests import tiny
from tests.train.objectives.taught import HEAD, learned

MASK = torch.tensor([[1, 1, 0]])


def answers(*embeddings):
    """Of student and teacher, each (tokens, width), with a later layer that must not matter."""
    both = [
        SequenceClassifierOutput(hidden_states=(torch.tensor([one]), torch.randn(1, 3, len(one[0]))))
        for one in embeddings
    ]
    return Answers(inputs={"input_ids": MASK, "attention_mask": MASK}, student=both[0], teacher=both[1])


def test_mse_over_real_tokens_by_hand():
    both = answers([[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]], [[0.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    assert Embedding().value(both, Embedding().begin(both)).item() == pytest.approx((9 + 1) / 4)


def test_a_narrow_student_is_projected():
    both = answers([[1.0], [2.0], [9.0]], [[2.0, 1.0], [4.0, 2.0], [0.0, 0.0]])
    beside = Embedding().begin(both)
    with torch.no_grad():
        beside.width.weight.copy_(torch.tensor([[2.0], [1.0]]))
    assert Embedding().value(both, beside).item() == pytest.approx(0.0)


def test_a_model_without_hidden_states():
    bare = SequenceClassifierOutput(logits=torch.zeros(1, 2))
    with pytest.raises(LissomError, match="LSM-715 embedding: the model gives no single row of hidden states"):
        Embedding().begin(Answers(inputs={}, student=bare, teacher=bare))


@pytest.mark.parametrize("family", ["electra", "modernbert", "gpt2"])
def test_embeddings_come_nearer_and_nothing_else_is_trained(tmp_path, family):
    narrow = {"n_embd": 16} if family == "gpt2" else {"hidden_size": 16}
    student, teacher = tiny.model(family, HEAD, **narrow), tiny.model(family, HEAD, seed=1)
    before = {name: one.clone() for name, one in student.named_parameters()}
    values = learned(tmp_path, student, teacher, Embedding())
    assert values[-1] < 0.9 * values[0]
    moved = {name for name, one in student.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert not any(".layer" in name or ".h." in name for name in moved)
