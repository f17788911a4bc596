from __future__ import annotations

import logging

import pytest
import torch
import transformers

import lissom
from lissom.data import load_data
from lissom.edits import Editor, FactorizeTable, KeepVocab
from lissom.errors import LissomError
from lissom.export import export
from lissom.methods import Given
from lissom.methods.low_rank.factorize_vocabulary import FactorizeVocabulary
from lissom.methods.quantization.int8 import Int8
from lissom.nn import Int8Embedding, LowRankLinear, MixingEmbedding, ThinEmbedding
from lissom.recipe import parameters
from tests import tiny

TIED = [("bert", "AutoModelForMaskedLM"), ("gpt2", "AutoModelForCausalLM"), ("opt", "AutoModelForCausalLM")]


def tied(variant: str, head: str):
    return tiny.model(variant, head, tie_word_embeddings=True)


def test_rows_by_hand():
    table = ThinEmbedding(3, 2, 1, padding_idx=0)
    with torch.no_grad():
        table.table.weight.copy_(torch.tensor([[0.0], [2.0], [3.0]]))
        table.widen.copy_(torch.tensor([[1.0, -1.0]]))
    assert table(torch.tensor([[2, 1]])).tolist() == [[[3, -3], [2, -2]]]
    assert table.weight.tolist() == [[0, 0], [2, -2], [3, -3]]


def test_it_is_the_nearest_table_of_its_rank():
    model = tiny.model("bert")
    wanted = model.get_input_embeddings().weight.detach().clone()
    FactorizeVocabulary(ratio=0.5).apply(Editor(model), Given())
    table = model.get_input_embeddings()
    rank = table.table.embedding_dim
    assert rank == int(0.5 * 99 * 32 / (99 + 32))
    rest = torch.linalg.svdvals(wanted)[rank:].norm()
    torch.testing.assert_close((table.weight - wanted).norm(), rest, rtol=1e-4, atol=1e-4)


def test_tokens_that_stand_in_the_texts_lose_less():
    texts = {"train": {"text": ["w5 w6 w7 w8"] * 50}, "validation": {"text": ["w5"]}}
    given = Given(data=load_data(texts), tokenizer=tiny.tokenizer(), max_length=32)
    ids = given.tokenizer("w5 w6 w7 w8")["input_ids"]
    lost = {}
    for by in ("weights", "tokens"):
        model = tiny.model("bert")
        wanted = model.get_input_embeddings().weight.detach().clone()
        FactorizeVocabulary(ratio=0.25, by=by).apply(Editor(model), given)
        lost[by] = float((model.get_input_embeddings().weight.detach() - wanted)[ids].norm())
    assert lost["tokens"] < 0.6 * lost["weights"]


@pytest.mark.parametrize("variant", ["bart", "t5"])
def test_a_table_that_two_stacks_share_stays(variant: str, caplog: pytest.LogCaptureFixture):
    model = tied(variant, "AutoModelForSeq2SeqLM")
    before = parameters(model)
    for of in ("input", "output"):
        FactorizeVocabulary(ratio=0.5, of=of).apply(Editor(model), Given())
    assert parameters(model) == before
    assert caplog.text.count("is not a plain one of its own, and stays as it is") == 2


@pytest.mark.parametrize(("variant", "head"), TIED)
def test_a_head_that_shares_the_table_shares_both_factors(variant: str, head: str, tmp_path):
    model = tied(variant, head)
    before, inputs = parameters(model), tiny.batch(model)
    FactorizeVocabulary(ratio=0.5, of="output").apply(Editor(model), Given())
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(output, LowRankLinear)
    assert output.up.weight is table.table.weight
    assert output.down.weight is table.widen
    torch.testing.assert_close(output.dense(), table.weight)
    assert parameters(model) < before
    answer = tiny.outputs(model, inputs)
    lissom.save(model, tmp_path / "out")
    loaded = getattr(transformers, head).from_pretrained(tmp_path / "out")
    assert torch.equal(tiny.outputs(loaded, inputs), answer)
    assert loaded.get_output_embeddings().up.weight is loaded.get_input_embeddings().table.weight
    assert parameters(loaded) == parameters(model)


def test_it_trains_as_one_and_generates():
    model = tied("gpt2", "AutoModelForCausalLM")
    FactorizeVocabulary(ratio=0.5).apply(Editor(model), Given())
    batch = tiny.batch(model)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.get_input_embeddings().widen.grad is model.get_output_embeddings().down.weight.grad is not None
    assert model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_full_rank_answers_the_same():
    model = tied("gpt2", "AutoModelForCausalLM")
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    path = "transformer.wte"
    u, s, v = torch.linalg.svd(model.get_input_embeddings().weight.detach(), full_matrices=False)
    edit = FactorizeTable(path=path, rank=32, heads=("lm_head",))
    Editor(model).apply(edit, {f"{path}.table.weight": u * s, f"{path}.widen": v})
    torch.testing.assert_close(tiny.outputs(model, inputs), whole, atol=1e-4, rtol=1e-4)


def test_a_head_of_its_own_alone(tmp_path):
    model = tiny.model("llama", "AutoModelForCausalLM")
    FactorizeVocabulary(ratio=0.5, of="output").apply(Editor(model), Given())
    assert isinstance(model.get_output_embeddings(), LowRankLinear)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    lissom.save(model, tmp_path / "out")
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


def test_the_narrow_table_is_packed_and_a_shared_one_is_not():
    model = tiny.model("bert", "AutoModelForSequenceClassification")
    for step in (FactorizeVocabulary(ratio=0.5), Int8()):
        step.apply(Editor(model), Given())
    assert isinstance(model.get_input_embeddings().table, Int8Embedding)
    assert torch.isfinite(tiny.outputs(model, tiny.batch(model))).all()
    model = tied("gpt2", "AutoModelForCausalLM")
    for step in (FactorizeVocabulary(ratio=0.5), Int8()):
        step.apply(Editor(model), Given())
    assert type(model.get_input_embeddings().table) is torch.nn.Embedding


def test_rows_that_look_at_each_other_by_hand():
    table = MixingEmbedding(3, 2, 1, padding_idx=0)
    with torch.no_grad():
        table.table.weight.copy_(torch.tensor([[9.0], [1.0], [2.0]]))
        table.widen.copy_(torch.tensor([[1.0, -1.0]]))
        table.query.zero_()  # all scores alike: the mean of what is not padding
    ids = torch.tensor([[1, 2, 0]])
    assert table(ids).tolist() == [[[1, -1], [2, -2], [9, -9]]]
    with torch.no_grad():
        table.output.fill_(2.0)
    assert table(ids).tolist() == [[[4, -4], [5, -5], [12, -12]]]  # twice the mean of 1 and 2 more
    assert table.weight.tolist() == [[9, -9], [1, -1], [2, -2]]


def test_mixing_starts_as_nothing_and_is_saved_and_exported(tmp_path):
    thin, mixed = (tiny.model("bert", "AutoModelForSequenceClassification") for _ in range(2))
    FactorizeVocabulary(ratio=0.5).apply(Editor(thin), Given())
    FactorizeVocabulary(ratio=0.5, mixes=True).apply(Editor(mixed), Given())
    inputs = tiny.batch(mixed)
    torch.testing.assert_close(tiny.outputs(mixed, inputs), tiny.outputs(thin, inputs))
    with torch.no_grad():
        mixed.get_input_embeddings().output.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(tiny.outputs(mixed, inputs), tiny.outputs(thin, inputs))
    lissom.save(mixed, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(mixed, inputs))
    export(mixed, "onnx", tmp_path / "graph")  # proves it
    Int8().apply(Editor(mixed), Given())
    assert torch.isfinite(tiny.outputs(mixed, inputs)).all()


def test_decoders_have_no_whole_text_to_mix():
    with pytest.raises(LissomError, match="LSM-715 rows that look at each other need the whole text"):
        FactorizeVocabulary(mixes=True).check(Editor(tiny.model("gpt2")).anatomy(), Given())


def test_tokens_can_go_afterwards(tmp_path):
    model = tied("gpt2", "AutoModelForCausalLM")
    FactorizeVocabulary(ratio=0.5).apply(Editor(model), Given())
    inputs = tiny.batch(model)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=49)
    whole = tiny.outputs(model, inputs)
    Editor(model).apply(KeepVocab.of(model, range(50)))
    assert model.get_output_embeddings().up.weight is model.get_input_embeddings().table.weight
    torch.testing.assert_close(tiny.outputs(model, inputs), whole.view(-1, 99)[:, :50].flatten())
    lissom.save(model, tmp_path / "out")
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), inputs), tiny.outputs(model, inputs))


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_what_stays(ratio: float, caplog: pytest.LogCaptureFixture):
    variant = "bert" if ratio == 1 else "t5"
    model = tiny.model(variant, "AutoModelForSeq2SeqLM" if variant == "t5" else "AutoModel")
    with caplog.at_level(logging.WARNING, "lissom"):
        FactorizeVocabulary(ratio=ratio).apply(Editor(model), Given())
    assert not Editor(model).record.edits
    assert ("the token table is not a plain one of its own" in caplog.text) == (variant == "t5")


def test_what_it_needs():
    anatomy = Editor(tiny.model("bert")).anatomy()
    with pytest.raises(LissomError, match="LSM-317 by: tokens looks at texts"):
        FactorizeVocabulary(by="tokens").check(anatomy, Given())
    with pytest.raises(LissomError, match="LSM-715 BertModel has no map to the scores of tokens"):
        FactorizeVocabulary(of="output").check(anatomy, Given())


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (FactorizeTable(path="embeddings.word_embeddings", rank=33), "rank 33 is outside 1 to 32"),
        (FactorizeTable(path="pooler.dense", rank=3), "no plain embedding table stands here"),
        (FactorizeTable(path="embeddings.word_embeddings", rank=3, heads=("pooler.dense",)), "a head of 32 x 32 for a"),
    ],
)
def test_edits_that_do_not_fit(edit: FactorizeTable, cause: str):
    with pytest.raises(LissomError, match=f"LSM-451.*{cause}"):
        Editor(tiny.model("bert")).apply(edit)
