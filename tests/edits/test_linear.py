"""Low rank and int8 in the place of linear maps: values by hand, dtype and device of the parts, what is refused."""

from __future__ import annotations

import pytest
import torch

from lissom.anatomy import dissect
from lissom.edits import Edit, Editor, Factorize, MultiplyOut, Pack, Record
from lissom.errors import LissomError
from lissom.nn import Int8Embedding, Int8Linear, LowRankLinear
from lissom.nn.int8 import quantize_rows
from tests import tiny

PATH = "encoder.layer.1.intermediate.dense"  # 32 -> 48

WRONG = [
    (Factorize(ranks={"encoder.layer.9": 2}), "no linear map stands here", "encoder.layer.9"),
    (Factorize(ranks={"encoder.layer.1": 2}), "no linear map stands here", "encoder.layer.1"),
    (Factorize(ranks={PATH: 0}), "rank 0 is outside 1 to 32", PATH),
    (Factorize(ranks={PATH: 33}), "rank 33 is outside 1 to 32", PATH),
    (MultiplyOut(linears=("pooler",)), "no linear map stands here", "pooler"),
    (Pack(linears=("embeddings.word_embeddings",)), "no linear map stands here", "embeddings.word_embeddings"),
    (Pack(embeddings=(PATH,)), "no plain embedding table stands here", PATH),
    (Pack(embeddings=("nowhere",)), "no plain embedding table stands here", "nowhere"),
]


@pytest.mark.parametrize(("edit", "cause", "place"), WRONG, ids=str)
def test_edits_that_do_not_fit(edit: Edit, cause: str, place: str) -> None:
    model = tiny.model("bert")
    with pytest.raises(LissomError) as caught:
        Editor(model).apply(edit)
    assert (caught.value.code, caught.value.cause, caught.value.place) == ("LSM-451", cause, place)
    assert not Record.of(model).edits


TABLES = [
    ("bart", "shared"),  # multiplies
    ("opt", "decoder.embed_positions"),  # looks up something else than its input
    ("deberta-v3", "encoder.rel_embeddings"),  # read as a whole
    ("mpnet", "encoder.relative_attention_bias"),  # cut with the heads
]


@pytest.mark.parametrize(("variant", "path"), TABLES)
def test_tables_that_are_not_merely_looked_up(variant: str, path: str) -> None:
    model = tiny.model(variant)
    assert isinstance(model.get_submodule(path), torch.nn.Embedding)
    with pytest.raises(LissomError, match="no plain embedding table stands here"):
        Editor(model).apply(Pack(embeddings=(path,)))


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        (f"{PATH}.up.weight", torch.zeros(48, 3), "a tensor of shape (48, 3) for one of shape (48, 2)"),
        (f"{PATH}.up", torch.zeros(1), "no tensor stands here"),
        (f"{PATH}.up.scale", torch.zeros(1), "no tensor stands here"),
        ("nowhere.weight", torch.zeros(1), "no tensor stands here"),
    ],
)
def test_a_tensor_that_does_not_fit(name: str, value: torch.Tensor, cause: str) -> None:
    with pytest.raises(LissomError) as caught:
        Editor(tiny.model("bert")).apply(Factorize(ranks={PATH: 2}), {name: value})
    assert (caught.value.code, caught.value.cause, caught.value.place) == ("LSM-451", cause, name)


def test_factors_are_what_is_computed() -> None:
    model = tiny.model("bert")
    bias = model.get_submodule(PATH).bias.detach().clone()
    up, down = torch.randn(48, 2), torch.randn(2, 32)
    Editor(model).apply(Factorize(ranks={PATH: 2}), {f"{PATH}.up.weight": up, f"{PATH}.down.weight": down})
    module, x = model.get_submodule(PATH), torch.randn(5, 32)
    assert isinstance(module, LowRankLinear)
    torch.testing.assert_close(module(x), x @ (up @ down).t() + bias)
    slot = dissect(model).stacks[0].blocks[1].ffn.up
    torch.testing.assert_close(slot.weight, up @ down)
    assert (slot.out_features, slot.in_features) == (48, 32)


def packed(model: torch.nn.Module, path: str) -> dict[str, torch.Tensor]:
    codes, scale = quantize_rows(model.get_submodule(path).weight)
    return {f"{path}.weight": codes, f"{path}.weight_scale": scale}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_parts_answer_in_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = tiny.model("bert").to(dtype)
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs).float()
    table = "embeddings.word_embeddings"
    Editor(model).apply(Pack(linears=(PATH,), embeddings=(table,)), {**packed(model, PATH), **packed(model, table)})
    assert isinstance(model.get_submodule(PATH), Int8Linear)
    assert isinstance(model.get_submodule(table), Int8Embedding)
    assert model.get_submodule(table).padding_idx == 0
    answer = tiny.outputs(model, inputs)
    assert answer.dtype == dtype
    assert torch.nn.functional.cosine_similarity(answer.float(), whole, dim=0) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_map_can_be_factorized(dtype: torch.dtype) -> None:
    model = tiny.model("bert").to(dtype)
    editor = Editor(model)
    editor.apply(Pack(linears=(PATH,)), packed(model, PATH))
    editor.apply(Factorize(ranks={PATH: 2}))
    module = model.get_submodule(PATH)
    assert module.up.weight.dtype == module.up.bias.dtype == dtype


def test_a_part_of_a_fused_projection_cannot_be_replaced_alone() -> None:
    slot = dissect(tiny.model("gpt2")).stacks[0].blocks[0].attention.k
    with pytest.raises(LissomError, match="is a part of a fused projection and cannot be replaced alone") as caught:
        slot.swap(torch.nn.Identity())
    assert (caught.value.code, caught.value.place) == ("LSM-711", "h.0.attn.c_attn")
