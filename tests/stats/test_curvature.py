"""Curvature against matrices that are written down, and against what really happens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.anatomy import Slot, dissect
from lissom.errors import LissomError
from lissom.stats.curvature import _largest, _omega, _slopes, answer_weights, block_weights, omegas, row_fisher
from lissom.stats.sensitivity import answers_of
from tests import tiny

CLASSIFIER = "AutoModelForSequenceClassification"


class Quadratic(nn.Module):
    """loss = ½ Σ_i scale_i · w_i² · (the mean of the ids), whose Hessian is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0]]))
        self.second = nn.Parameter(torch.tensor([[0.5, 0.5]]))

    def forward(self, input_ids: Tensor, **_: Tensor) -> SequenceClassifierOutput:
        factor = input_ids.float().mean()
        bent = (torch.tensor([3.0, 1.0, -0.5]) * self.first.square()).sum() + 0.25 * self.second.square().sum()
        return SequenceClassifierOutput(loss=factor * bent / 2)


def labelled(model, rows=4, seed=0):
    batch = tiny.batch(model, rows=rows, seed=seed)
    return {**batch, "labels": torch.arange(rows) % 3}


def test_omega_of_a_quadratic_by_hand():
    model = Quadratic()
    batches = [{"input_ids": torch.full((1, 2), value)} for value in (1, 3)]
    found = omegas(model, {"a": [model.first], "b": [model.second]}, batches)
    # the top eigenvalues are 3 and 9: mean 6, deviation 3; of the other block 0.25 and 0.75
    assert found == {"a": pytest.approx(9.0, rel=0.02), "b": pytest.approx(0.75, rel=0.02)}
    assert _omega([-4.0, 2.0]) == 1 + 3


def test_omega_is_the_top_eigenvalue_of_the_whole_hessian():
    model = tiny.model("bert", CLASSIFIER, num_hidden_layers=1).double()
    batch, weights = labelled(model), block_weights(dissect(model))
    (name,) = weights
    chosen = [weights[name][0]]  # the queries

    def loss(weight: Tensor) -> Tensor:
        named = {next(key for key, one in model.named_parameters() if one is chosen[0]): weight}
        model.set_attn_implementation("eager")
        return torch.func.functional_call(model, named, kwargs=batch).loss

    hessian = torch.autograd.functional.hessian(loss, chosen[0].detach().clone())
    size = chosen[0].numel()
    values = torch.linalg.eigvalsh(hessian.reshape(size, size))
    model.set_attn_implementation("sdpa")
    slopes = _slopes(model, {name: chosen}, batch)[name]
    start = torch.randn(chosen[0].shape, generator=torch.Generator().manual_seed(0))
    found, _ = _largest(slopes, chosen, [start])
    assert abs(found) == pytest.approx(float(values.abs().max()), rel=0.1)


@pytest.mark.parametrize("variant", ["bert", "gpt2", "llama", "t5", "albert"])
def test_every_block_has_an_omega_and_the_model_is_left_alone(variant: str):
    model = tiny.model(variant, CLASSIFIER)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    frozen = next(iter(block_weights(dissect(model)).values()))[0].requires_grad_(requires_grad=False)
    found = omegas(model, block_weights(dissect(model)), [labelled(model)])
    assert set(found) == {block.path for stack in dissect(model).stacks for block in stack.blocks}
    assert all(value >= 0 for value in found.values())
    assert max(found.values()) > 0
    assert found == omegas(model, block_weights(dissect(model)), [labelled(model)])
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not frozen.requires_grad
    assert all(one.grad is None for one in model.parameters())


def test_texts_without_labels_and_losses_that_are_not_finite_are_refused():
    model = tiny.model("bert", CLASSIFIER)
    with pytest.raises(LissomError, match=r"LSM-821 .*labelled texts"):
        omegas(model, block_weights(dissect(model)), [tiny.batch(model)])
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(LissomError, match="LSM-902"):
        omegas(model, block_weights(dissect(model)), [labelled(model)])


def test_the_weights_of_answers_foretell_how_far_they_move():
    """½ Σ F_r e² of a small random error e of a map's outputs, against the KL divergence that it makes."""
    model = tiny.model("bert", CLASSIFIER, num_hidden_layers=2)
    slots = list(dissect(model).linears())
    batches = [tiny.batch(model, rows=16, seed=seed) for seed in range(8)]
    weights = answer_weights(model, slots, batches)
    for slot in (slots[3], slots[5], slots[9]):
        size = 0.01 * torch.arange(1, slot.out_features + 1) / slot.out_features
        moved = sum(_moved(model, slot, batch, size, seed) for batch in batches for seed in range(4)) / 4
        assert float(weights[slot.path] @ size.square()) / 2 == pytest.approx(moved, rel=0.35)


def _moved(model, slot: Slot, batch, size: Tensor, seed: int) -> float:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = answers_of(model, batch)["logits"].double().log_softmax(-1)
        hook = slot.module.register_forward_hook(
            lambda _m, _a, y: y + size * (2 * torch.randint(0, 2, y.shape, generator=noise) - 1)
        )
        after = answers_of(model, batch)["logits"].double().log_softmax(-1)
        hook.remove()
    return float((before.exp() * (before - after)).sum())


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForQuestionAnswering"),
        ("bert", "AutoModelForTokenClassification"),
        ("llama", "AutoModelForCausalLM"),
        ("albert", CLASSIFIER),
    ],
)
def test_answers_of_every_kind_have_weights(variant: str, head: str):
    model = tiny.model(variant, head).requires_grad_(requires_grad=False)
    slots = list(dissect(model).linears())
    found = answer_weights(model, slots, [tiny.batch(model)])
    assert set(found) == {slot.path for slot in slots}
    assert all(one.shape == (slot.out_features,) for one, slot in zip(found.values(), slots, strict=True))
    assert sum(float(one.sum()) for one in found.values()) > 0


@pytest.mark.parametrize("variant", ["bert", "albert", "gpt2"])
def test_fisher_by_rows_is_that_of_each_text_alone(variant: str):
    model = tiny.model(variant, CLASSIFIER)
    batch = labelled(model)
    batch["attention_mask"][1, 3:] = 0  # what is filled up has no gradient
    slots = list(dissect(model).linears())
    found = row_fisher(
        model, slots, [{name: one[:3] for name, one in batch.items()}, {name: one[3:] for name, one in batch.items()}]
    )
    wanted = {slot.path: torch.zeros(slot.out_features) for slot in slots}
    for row in range(4):
        loss = model(**{name: one[row : row + 1] for name, one in batch.items()}).loss
        weights = [slot.module.weight for slot in slots]
        for slot, gradient in zip(slots, torch.autograd.grad(loss, weights), strict=True):
            wanted[slot.path] += gradient.square().sum(0 if variant == "gpt2" else 1) / 4
    for path, one in wanted.items():
        assert float(one.sum()) > 0
        torch.testing.assert_close(found[path], one, rtol=1e-3, atol=1e-9)


def test_fisher_by_rows_needs_labels():
    model = tiny.model("bert", CLASSIFIER)
    with pytest.raises(LissomError, match="LSM-821"):
        row_fisher(model, list(dissect(model).linears()), [tiny.batch(model, rows=2)])


def test_slices_are_short_and_what_is_left_over_is_not_looked_at():
    model, seen = Quadratic(), []
    plain = model.forward
    model.forward = lambda input_ids, **named: (seen.append(len(input_ids)), plain(input_ids, **named))[1]
    omegas(model, {"a": [model.first]}, [{"input_ids": torch.ones(64, 2, dtype=torch.int64)}] * 4)
    assert seen == [8] * 10
