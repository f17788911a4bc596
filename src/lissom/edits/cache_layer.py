"""One layer of transformers' cache whose older tokens are in few bits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from lissom.nn.states import PackedStates


class PackedLayer(DynamicLayer):
    """Holds the last `residual` to `residual + group - 1` tokens as they are, and those before in `bits` bits.

    Tokens that arrive, of a prompt too, are attended to as they are; then the oldest are packed, a group at a time.
    All that is packed is decoded anew at each call, for one layer at a time. Keys are grouped over tokens, values over
    channels, see `lissom.nn.states`. Packed tokens cannot be taken back (no `crop`).
    """

    is_croppable = False
    keys: Tensor  # what is not packed; none before the first call
    values: Tensor

    def __init__(self, *, bits: int, group: int, residual: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.group, self.residual = group, residual
        self._make = functools.partial(PackedStates, bits, group)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with nothing."""
        super().lazy_initialization(key_states, value_states)
        self.packed = (self._make(over_tokens=True), self._make(over_tokens=False))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add tokens. Returns keys and values of all of them, (batch, heads, tokens, channels) each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        recent = [torch.cat(pair, -2) for pair in ((self.keys, key_states), (self.values, value_states))]
        past = [one.dense(self.dtype) for one in self.packed if one.tokens]
        whole = [torch.cat(pair, -2) for pair in zip(past, recent, strict=True)] if past else recent
        ripe = max(recent[0].shape[-2] - self.residual, 0) // self.group * self.group
        if ripe:
            for states, one in zip(self.packed, recent, strict=True):
                states.append(one[..., :ripe, :])
            recent = [one[..., ripe:, :].clone() for one in recent]  # a view would keep all of it
        self.keys, self.values = recent
        return whole[0], whole[1]

    def get_seq_length(self) -> int:
        """How many tokens it holds."""
        return self.packed[0].tokens + self.keys.shape[-2] if self.is_initialized and self.keys.dim() == 4 else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds between calls."""
        return self.keys.nbytes + self.values.nbytes + sum(one.nbytes for one in self.packed)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the texts of the batch in another order."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each text of the batch."""
        if self.get_seq_length():
            self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these texts of the batch."""
        if self.get_seq_length():
            for states in self.packed:
                states.select(indices)
            at = indices.to(self.keys.device)
            self.keys, self.values = self.keys.index_select(0, at), self.values.index_select(0, at)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; a negative number, as transformers gives it. Raises ValueError for packed ones."""
        if self.is_initialized and -tokens_to_remove > self.keys.shape[-2]:
            raise ValueError("tokens that are packed cannot be taken back")
        super().crop(tokens_to_remove)


def pack_layers(cache: Cache | None, *, bits: int, group: int, residual: int) -> int:
    """Put packed layers into a cache that is still empty, in place of those that keep every token.

    Returns how many. Other caches, and layers that keep a window of tokens, stay as they are; of one for an encoder and
    a decoder that of the decoder's own tokens is packed.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if type(cache) is not DynamicCache or cache.get_seq_length():
        return 0
    make = functools.partial(PackedLayer, bits=bits, group=group, residual=residual)
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = make  # type: ignore[assignment]  # it is called, and nothing else
    whole = [number for number, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]
    for number in whole:
        cache.layers[number] = make()
    return len(whole)
