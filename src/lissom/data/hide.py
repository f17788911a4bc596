"""Hidden tokens, which a masked language model is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def hide(
    ids: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase, share: float, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """`ids` (batch, seq) with hidden tokens, and labels: what was there where one is hidden, -100 elsewhere.

    share: of the tokens that are hidden, special ones and padding (where `mask` is False) never. Of the hidden ones
        80 % become the mask token, 10 % a random one, 10 % stay.  seed: None draws from torch's generator.
    Source: Devlin et al. 2019 (BERT), section 3.1, as transformers' own collator does it.
    """
    import torch
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
    if seed is not None:
        collator.generator = torch.Generator().manual_seed(seed)
    there = ids.cpu()
    special = torch.isin(there, torch.tensor(tokenizer.all_special_ids)) | ~mask.cpu()
    hidden, labels = collator.torch_mask_tokens(there.clone(), special_tokens_mask=special)
    return hidden.to(ids), labels.to(ids)


def hidden_rows(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, seed: int, share: float = 0.15
) -> datasets.Dataset:
    """Encoded rows with hidden tokens and their labels, always the same ones for the same seed."""
    import datasets as hub
    import torch

    made = []
    for number, row in enumerate(rows):
        ids = torch.tensor([row["input_ids"]])
        hidden, labels = hide(ids, torch.ones_like(ids).bool(), tokenizer, share, seed=seed + number)
        made.append({**row, "input_ids": hidden[0].tolist(), "labels": labels[0].tolist()})
    return hub.Dataset.from_list(made)
