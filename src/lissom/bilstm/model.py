"""The BiLSTM text classifier of Tang et al. 2019, "Distilling task-specific knowledge from BERT into simple neural
networks", section 3.1.

    one text:  z = W2 · relu(W1 · h + b1) + b2,  h = [last state forward; last state backward]
    a pair:    the same with [h_a; h_b; h_a ⊙ h_b; |h_a - h_b|] in the place of h, one BiLSTM reading both texts

Differs from the paper: it reads the teacher's tokens with their special ones, not words, and has one table of them,
not a frozen and a trained one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from lissom.bilstm.config import BiLstmConfig
from lissom.nn import BiLstm


class BiLstmForSequenceClassification(PreTrainedModel):
    """A token table, one BiLSTM layer, a hidden layer with ReLU, and a classifier. Padding changes no answer."""

    config_class = BiLstmConfig
    config: BiLstmConfig

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.bilstm = BiLstm(config.embedding_size, config.units)
        width = 2 * config.units * (1 if config.separator_id is None else 4)
        self.hidden = nn.Linear(width, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token table in its place."""
        self.embeddings = value  # type: ignore[assignment]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **others: Any
    ) -> SequenceClassifierOutput:
        """Logits (batch, classes), and a loss where there are labels. It has no row of layers to give states of.

        input_ids, attention_mask: (batch, seq); the real tokens of a text stand together, padded on either side.
        """
        mask = self._mask(input_ids, attention_mask)
        start, length = mask.argmax(dim=1), mask.sum(dim=1).clamp(min=1)
        if self.config.separator_id is None:
            read = self._read(input_ids, start, length)
        else:
            first, second = self._pair(input_ids, start, length)
            a, b = self._read(input_ids, *first), self._read(input_ids, *second)
            read = torch.cat([a, b, a * b, (a - b).abs()], dim=-1)
        logits = self.classifier(torch.relu(self.hidden(read)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _mask(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, seq) int64, 1 at real tokens."""
        if mask is not None:
            return mask.long()
        pad = self.config.pad_token_id
        return torch.ones_like(ids) if pad is None else (ids != pad).long()

    def _read(self, ids: Tensor, start: Tensor, length: Tensor) -> Tensor:
        """What the BiLSTM makes of `length` tokens from `start` on; both (batch,). Returns (batch, 2 · units)."""
        last = ids.shape[1] - 1
        places = (start[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(max=last)
        states: Tensor = self.bilstm(self.embeddings(ids.gather(1, places)), length)
        return states

    def _pair(self, ids: Tensor, start: Tensor, length: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Start and length of both texts: what stands before the first separator, and what follows it.

        Where either is empty the token beside it is read in its place, so that padding never is.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        end = start + length
        inside = (places >= start[:, None]) & (places < end[:, None])
        found = (inside & (ids == self.config.separator_id)).long()
        at = torch.where(found.amax(dim=1) == 1, found.argmax(dim=1), end)
        second = torch.minimum(at + 1, end - 1)
        return (start, (at - start).clamp(min=1)), (second, (end - second).clamp(min=1))


AutoModelForSequenceClassification.register(BiLstmConfig, BiLstmForSequenceClassification, exist_ok=True)
