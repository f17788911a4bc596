import logging

import pytest
import torch

from lissom.errors import LissomError
from lissom.train.continuation import beginning, check_decoder, continued, row
from tests import tiny

CAUSAL = "AutoModelForCausalLM"
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def without_cache(model, prompt, count):
    """Greedy search, token by token, without padding."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox", "qwen3"])
def test_the_likeliest_tokens_do_not_depend_on_padding(family):
    torch.set_num_threads(1)
    model = tiny.model(family, CAUSAL)
    assert continued(model, PROMPTS, new_tokens=6, sample=False) == [without_cache(model, one, 6) for one in PROMPTS]


def test_a_text_ends_with_its_end():
    model = tiny.model("gpt2", CAUSAL)
    model.generation_config.eos_token_id = [without_cache(model, PROMPTS[0], 1)[0], 2]
    assert continued(model, PROMPTS[:1], new_tokens=6, sample=False) == [[model.generation_config.eos_token_id[0]]]


def test_settings_of_the_model_do_not_count():
    model = tiny.model("gpt2", CAUSAL)
    plain = continued(model, PROMPTS, new_tokens=5, sample=False)
    model.generation_config.update(
        repetition_penalty=5.0, min_length=9, min_new_tokens=5, do_sample=True, top_k=1, temperature=0.1
    )
    assert continued(model, PROMPTS, new_tokens=5, sample=False) == plain
    torch.manual_seed(0)
    drawn = {token for _ in range(20) for one in continued(model, PROMPTS, new_tokens=1, sample=True) for token in one}
    assert len(drawn) > 3, "top_k of the model would leave one for each prompt"


def test_nothing_is_said_in_each_step(caplog, monkeypatch):
    """It writes once a batch, and a warning of transformers each time would hide what a run says."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # the tests ask for less
    model = tiny.model("gpt2", CAUSAL)
    for sample in (True, False):
        continued(model, PROMPTS, new_tokens=4, sample=sample)
    assert not caplog.messages


def test_drawing_follows_the_models_probabilities_and_the_seed():
    torch.set_num_threads(1)
    model = tiny.model("gpt2", CAUSAL).train()
    modes = [one.training for one in model.modules()]
    model.lm_head.weight.data *= 0.2
    torch.manual_seed(0)
    drawn = [one[0] for one in continued(model, [[5, 6, 7]] * 4000, new_tokens=1, sample=True)]
    assert [one.training for one in model.modules()] == modes
    model.eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor(drawn), minlength=tiny.VOCABULARY) / 4000
    assert (found - wanted).abs().max() < 0.03
    torch.manual_seed(0)
    assert [one[0] for one in continued(model, [[5, 6, 7]] * 4000, new_tokens=1, sample=True)] == drawn


def test_a_prompt_leaves_something_to_say():
    assert beginning([1, 2, 3, 4], 2) == [1, 2]
    assert beginning([1, 2, 3], 8) == [1, 2]
    assert beginning([1], 8) == [1]


def test_the_continuation_alone_is_labelled():
    assert row([4, 5], [6, 2]) == {
        "input_ids": [4, 5, 6, 2],
        "attention_mask": [1, 1, 1, 1],
        "labels": [-100, -100, 6, 2],
    }


@pytest.mark.parametrize(
    ("family", "head", "length", "message"),
    [
        ("bert", "AutoModelForMaskedLM", 8, "LSM-319 here: BertForMaskedLM does not go on with a text. Use causal"),
        ("t5", "AutoModelForSeq2SeqLM", 8, "T5ForConditionalGeneration does not go on with a text."),
        ("gpt2", CAUSAL, 65, "LSM-319 here: prompt and new_tokens are 65 tokens, GPT2LMHeadModel reads 64. Lower one"),
    ],
)
def test_models_that_cannot_go_on(family, head, length, message):
    with pytest.raises(LissomError) as caught:
        check_decoder([tiny.model(family, head)], length, "here")
    assert message in str(caught.value)
