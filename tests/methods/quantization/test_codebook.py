import itertools
import json
import logging
import math

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import lissom
from lissom.edits import Editor, Palette
from lissom.errors import LissomError
from lissom.files import digest
from lissom.methods import Given
from lissom.methods.low_rank.svd import Svd
from lissom.methods.quantization.codebook import Codebook, centroids, far_out, nearest_of
from lissom.methods.weight_sharing.share_layers import ShareLayers
from lissom.nn.palette import PaletteEmbedding, PaletteLinear
from tests import tiny

BY_HAND = [
    ([0.0, 1, 10, 11, 20, 21, 30, 31], 4, [0.5, 10.5, 20.5, 30.5]),  # the bins are the best ones at once
    ([0.0, 0, 0, 0, 0, 10], 2, [0, 10]),  # the bins (0, 0, 0) and (0, 0, 10) are not: 10/3 moves to 10
    ([1.0, 2, 3, 10, 11, 12, 13], 2, [2, 11.5]),
    ([5.0, 5, 5, 5], 2, [5, 5]),
    ([3.0], 4, [3, 3, 3, 3]),
]


def l1(values, table):
    return (values[:, None] - table[None]).abs().min(1).values.sum().item()


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("values", "count", "expected"), BY_HAND)
def test_tables_by_hand(values, count, expected):
    assert centroids(torch.tensor(values)[torch.randperm(len(values))], count).tolist() == pytest.approx(expected)


def test_the_nearest_value():
    table = torch.tensor([-1.0, 0.0, 4.0])
    assert nearest_of(torch.tensor([[-9.0, -0.6, -0.4], [1.9, 2.1, 99.0]]), table).tolist() == [[0, 0, 1], [1, 2, 2]]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("power", [1, 3])
def test_the_error_is_that_of_a_plain_search_that_stops_at_its_least(bits, power):
    values = gaussian(2000, seed=bits).double() ** power
    table = torch.stack([part.mean() for part in values.sort().values.tensor_split(2**bits)])
    errors = [l1(values, table)]
    while True:
        nearest = (values[:, None] - table[None]).abs().argmin(1)
        tried = torch.stack([values[nearest == i].mean() for i in range(len(table))])
        if l1(values, tried) >= errors[-1]:
            break
        table = tried
        errors.append(l1(values, table))
    found = centroids(values, 2**bits)
    assert len(errors) > (power == 3)  # for a Gaussian in 2 bits the bins have the least error already
    assert all(after < before for before, after in itertools.pairwise(errors))
    torch.testing.assert_close(found.double(), table, rtol=1e-3, atol=1e-3)
    assert l1(values, found.double()) == pytest.approx(errors[-1], rel=1e-4)


@pytest.mark.parametrize("spread", [0.03, 0.05, 0.1])
def test_the_share_of_outliers_of_a_gaussian(spread):
    # log-density -4 is that of z spreads from the mean, z² / 2 = 4 - log(spread √2π)
    z = math.sqrt(2 * (4 - math.log(spread * math.sqrt(2 * math.pi))))
    share = math.erfc(z / math.sqrt(2))
    found = far_out(gaussian(2_000_000) * spread + 1, -4.0).float().mean().item()
    assert 1e-4 < share < 1.2e-3
    assert found == pytest.approx(share, rel=0.15)
    assert not far_out(torch.full((4, 4), 2.0), -4.0).any()


def test_every_map_and_the_token_table_are_stored_and_outliers_stay_to_the_last_bit():
    editor = Editor(tiny.model("bert", "AutoModelForSequenceClassification"))
    slot = editor.anatomy().stacks[0].blocks[0].ffn.up
    with torch.no_grad():
        slot.weight[3, 5] = 7.125
    size, width = slot.weight.shape
    Codebook(bits=3).apply(editor, Given())
    assert sum(isinstance(one, PaletteLinear) for one in editor.model.modules()) == 3 * 6
    assert isinstance(editor.model.bert.embeddings.word_embeddings, PaletteEmbedding)
    assert isinstance(editor.model.classifier, torch.nn.Linear)
    made = editor.anatomy().stacks[0].blocks[0].ffn.up.module
    assert made.weight_positions.tolist() == [3 * width + 5]
    assert made.dense()[3, 5].item() == 7.125
    assert made.weight.shape == (size, -(-width * 3 // 8))
    assert len(made.dense().unique()) <= 8 + 1


def test_more_bits_are_nearer():
    model = tiny.model("bert")
    inputs = tiny.batch(model)
    whole = tiny.outputs(model, inputs)
    near = []
    for bits in (2, 3, 4):
        editor = Editor(tiny.model("bert"))
        Codebook(bits=bits).apply(editor, Given())
        near.append((tiny.outputs(editor.model, inputs) - whole).norm().item())
    assert near[0] > near[1] > near[2] > 0


def test_twice_is_once_and_a_preview_has_the_same_shapes():
    editor, other = Editor(tiny.model("bert")), Editor(tiny.model("bert"))
    Codebook().apply(editor, Given())
    answer = tiny.outputs(editor.model, tiny.batch(editor.model))
    Codebook(bits=2).apply(editor, Given())
    assert len(editor.record.edits) == 1
    assert torch.equal(tiny.outputs(editor.model, tiny.batch(editor.model)), answer)
    Codebook().preview(other, Given())
    shapes = [{name: one.shape for name, one in each.model.state_dict().items()} for each in (editor, other)]
    assert shapes[0] == shapes[1]


def test_factors_are_stored_and_shared_layers_stay_shared():
    editor = Editor(tiny.model("bert"))
    Svd(ratio=0.5).apply(editor, Given())
    ShareLayers(unique=1).apply(editor, Given())
    Codebook().apply(editor, Given())
    assert sum(isinstance(one, PaletteLinear) for one in editor.model.modules()) == 3 * 6 * 2
    blocks = editor.anatomy().stacks[0].blocks
    assert blocks[0].ffn.up.module.up.weight_table is blocks[2].ffn.up.module.up.weight_table


def test_a_table_tied_to_the_output_stays_and_the_log_says_so(caplog):
    editor = Editor(tiny.model("bert", "AutoModelForMaskedLM"))
    with caplog.at_level(logging.WARNING, logger="lissom"):
        Codebook().apply(editor, Given())
    assert type(editor.model.get_input_embeddings()) is torch.nn.Embedding
    assert "stays in floating point" in caplog.text


def test_weights_that_cannot_be_stored_are_refused():
    editor = Editor(tiny.model("bert"))
    slot = editor.anatomy().stacks[0].blocks[1].ffn.up
    with torch.no_grad():
        slot.weight.mul_(1000)
    cause = r"LSM-314 encoder\.layer\.1\.intermediate\.dense: \d+% of the weights have a log-density below -4 .*lower"
    with pytest.raises(LissomError, match=cause):
        Codebook().apply(editor, Given())
    with torch.no_grad():
        slot.weight[0, 0] = torch.nan
    with pytest.raises(LissomError, match=r"LSM-901 encoder\.layer\.1\.intermediate\.dense: .*NaN"):
        Codebook().apply(editor, Given())


def saved(tmp_path):
    editor = Editor(tiny.model("bert"))
    with torch.no_grad():
        editor.anatomy().stacks[0].blocks[0].ffn.up.weight[0, 0] = 5
    Codebook().apply(editor, Given())
    lissom.save(editor.model, tmp_path / "out")
    return tmp_path / "out", editor.model


def test_it_is_small_on_disk_and_comes_back_equal(tmp_path):
    folder, model = saved(tmp_path)
    again = lissom.load(folder)
    inputs = tiny.batch(model)
    assert torch.equal(tiny.outputs(again, inputs), tiny.outputs(model, inputs))
    weights = folder / "model.safetensors"
    name = "encoder.layer.0.intermediate.dense"
    with safe_open(weights, "pt") as file:
        held = {one.removeprefix(f"{name}."): file.get_tensor(one) for one in file.keys() if one.startswith(f"{name}.")}  # noqa: SIM118
    assert set(held) == {"weight", "bias", "weight_table", "weight_outliers", "weight_positions"}
    module = model.get_submodule(name)
    assert held["weight"].numel() == module.out_features * -(-module.in_features * 3 // 8)


@pytest.mark.parametrize("wrong", [-2, 10**6])
def test_a_file_with_outliers_elsewhere_is_refused(tmp_path, wrong):
    folder, _ = saved(tmp_path)
    weights, name = folder / "model.safetensors", "encoder.layer.0.intermediate.dense.weight_positions"
    tensors = safetensors.torch.load_file(weights)
    tensors[name][0] = wrong
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    manifest = folder / "lissom.json"
    entries = json.loads(manifest.read_text())
    entries["files"]["model.safetensors"] = digest(weights)
    manifest.write_text(json.dumps(entries))
    with pytest.raises(LissomError, match=rf"LSM-\d+ .*an outlier stands at position {wrong} of a matrix"):
        lissom.load(folder)


@pytest.mark.parametrize(
    ("linears", "outliers", "cause"),
    [
        (("encoder.layer.0.intermediate.dense",), 10**6, "1000000 outliers of"),
        (("encoder.layer.0.intermediate.dense",), -1, "-1 outliers of"),
        ((), 1, "outliers of what is not stored in few bits"),
    ],
)
def test_counts_that_do_not_fit_are_refused(linears, outliers, cause):
    edit = Palette(bits=3, linears=linears, outliers={"encoder.layer.0.intermediate.dense": outliers})
    with pytest.raises(LissomError, match=f"LSM-451 encoder.layer.0.intermediate.dense: {cause}"):
        Editor(tiny.model("bert")).apply(edit)


def test_vectors_of_columns_share_a_number(tmp_path):
    model = tiny.model("bert")
    weight = model.encoder.layer[0].intermediate.dense.weight.detach().clone()
    Codebook(bits=8, vector=2, density=-1000).apply(Editor(model), Given())
    made = model.encoder.layer[0].intermediate.dense
    assert (made.weight.shape, made.weight_table.shape) == ((48, 16), (256, 2))
    pairs, table = weight.reshape(-1, 2), made.weight_table
    best = (pairs[:, None] - table[None]).square().sum(-1).min(1).values
    torch.testing.assert_close((made.dense() - weight).square().reshape(-1, 2).sum(1), best, atol=1e-5, rtol=1e-4)
    assert (made.dense() - weight).square().mean() < 0.02 * weight.square().mean()
    lissom.save(model, tmp_path / "out")
    batch = tiny.batch(model)
    assert torch.equal(tiny.outputs(lissom.load(tmp_path / "out"), batch), tiny.outputs(model, batch))


def test_vectors_leave_outliers_whole():
    model = tiny.model("bert")
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight[3, 5] = 40.0
    Codebook(bits=8, vector=4, embeddings=False, density=-30).apply(Editor(model), Given())
    assert model.encoder.layer[0].intermediate.dense.dense()[3, 5] == 40.0
    assert model.encoder.layer[0].intermediate.dense.weight_table.abs().max() < 5


def test_vectors_that_do_not_fit_are_refused():
    model = tiny.model("bert", intermediate_size=50)
    with pytest.raises(LissomError, match=r"LSM-318 encoder\.layer\.0\.output\.dense: vectors of 4 do not fill 50"):
        Codebook(vector=4).preview(Editor(model), Given())
