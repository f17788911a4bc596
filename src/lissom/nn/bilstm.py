"""One bidirectional LSTM layer that reads texts of different lengths and answers with its last states.

Padding is never read: the recurrence of a text ends with its last token, and the backward one begins there. While a
model is traced for export the whole layer is one node, which becomes ONNX's own LSTM operator with `sequence_lens`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


def _last_states(x: Tensor, lengths: Tensor, lstm: nn.LSTM) -> Tensor:
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    _, (states, _) = lstm(packed)  # (directions, batch, units)
    return torch.cat([states[0], states[1]], dim=-1)


@torch.library.custom_op(
    "lissom::bilstm",
    mutates_args=(),
    schema="(Tensor x, Tensor lengths, Tensor w, Tensor r, Tensor b) -> Tensor",
)
def bilstm(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
    """The layer as one node of a traced graph, with weights in ONNX's layout; see `BiLstm.stacked`.

    x: (batch, seq, width).  lengths: (batch,) int64.  w: (2, 4 · units, width).  r: (2, 4 · units, units).
    b: (2, 8 · units).  Returns (batch, 2, units).
    """
    lstm = nn.LSTM(x.shape[-1], r.shape[-1], batch_first=True, bidirectional=True)
    for at, end in enumerate(("l0", "l0_reverse")):
        ih, hh = b[at].chunk(2)
        for name, value in (("weight_ih", w[at]), ("weight_hh", r[at]), ("bias_ih", ih), ("bias_hh", hh)):
            getattr(lstm, f"{name}_{end}").data = _gates(value, (0, 2, 3, 1))
    return _last_states(x, lengths, lstm).reshape(len(x), 2, -1)


@bilstm.register_fake
def _(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 2, r.shape[-1])


def _gates(value: Tensor, order: tuple[int, int, int, int]) -> Tensor:
    """The four blocks of rows in another order.

    torch has them as input, forget, cell, output; ONNX as input, output, forget, cell.
    """
    units = len(value) // 4
    return value.index_select(0, torch.tensor([units * block + i for block in order for i in range(units)]))


class BiLstm(nn.Module):
    """One LSTM layer in both directions. width: of its input.  units: in each direction."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, units, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, seq, width).  lengths: (batch,) int64, 1 and above; what comes behind is not read.

        Returns (batch, 2 · units): the state after the last token, and that of the backward direction after the first.
        """
        if torch.compiler.is_exporting():
            traced: Tensor = torch.ops.lissom.bilstm(x, lengths, *self.stacked())
            return traced.flatten(1)
        return _last_states(x, lengths, self.lstm)

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights in ONNX's layout: both directions in one tensor, gates as input, output, forget, cell.

        Returns W (2, 4 · units, width), R (2, 4 · units, units), B (2, 8 · units).
        """
        sides: list[list[Tensor]] = [
            [_gates(getattr(self.lstm, f"{name}_{end}"), (0, 3, 1, 2)) for end in ("l0", "l0_reverse")]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        w, r, ih, hh = (torch.stack(one) for one in sides)
        return w, r, torch.cat([ih, hh], dim=1)
