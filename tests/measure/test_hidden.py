import numpy as np
import pytest

from lissom.errors import LissomError
from lissom.measure import hidden
from lissom.measure.hidden import hidden_tokens
from lissom.runtime import TorchRunner
from tests import masked, tiny

TEXTS = [" ".join(f"w{4 + (7 * i + j) % 90}" for j in range(20)) for i in range(10)]


class Knowing(TorchRunner):
    """Answers every position with what stands there, but behind the mask with token `guess`."""

    guess = 10

    def forward(self, batch):
        said = np.where(batch["input_ids"] == masked.MASK, self.guess, batch["input_ids"])
        return {"logits": np.eye(tiny.VOCABULARY, dtype=np.float32)[said]}


def runner(kind=TorchRunner, tokenizer=None):
    return kind(tiny.model("bert", "AutoModelForMaskedLM"), tokenizer or masked.tokenizer(), max_length=64)


def test_counts_by_hand(monkeypatch):
    monkeypatch.setattr(hidden, "SHARE", 1.0)
    counts = hidden_tokens(runner(Knowing), TEXTS)
    assert counts[:, 1].tolist() == [20] * 10
    assert counts[:, 0].tolist() == [one.split().count("w10") for one in TEXTS]


def test_the_same_share_of_tokens_every_time():
    first, second = (hidden_tokens(runner(), TEXTS) for _ in range(2))
    assert (first == second).all()
    assert first[:, 1].tolist() == [3] * 10  # 15 % of 20
    assert hidden_tokens(runner(), ["w5"]).tolist()[0][1] == 1


def test_what_cannot_be_measured():
    with pytest.raises(LissomError, match="LSM-737 the data is running text, and the tokenizer has no mask token"):
        hidden_tokens(runner(tokenizer=tiny.tokenizer()), TEXTS)
    with pytest.raises(LissomError, match="LSM-853 there is no running text to hide tokens of"):
        hidden_tokens(runner(), [""])
