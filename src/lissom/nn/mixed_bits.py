"""A linear layer whose rows take 8, 4, 2 or no bits a weight, and a weight that is a mixture of them in training.

Rows that follow each other in the same bits are a run; the bytes of all runs, each packed as `lissom.nn.low_bit` says,
stand one after the other. A row of no bits is zero. Two bits are ternary codes; formulas in `lissom.nn.fake_quant`.
Source: Zhao et al. 2021 (AQ-BERT), section 3. Differs: two bits are ternary (TWN), which uses -1, 0 and 1 alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.nn.fake_quant import Kind, _straight, quantize
from lissom.nn.low_bit import LowBitLinear, pack_codes, unpack_codes

CHOICES = (8, 4, 2, 0)
KINDS: dict[int, Kind] = {8: "int8", 4: "int4", 2: "ternary"}
Runs = tuple[tuple[int, int], ...]
"""(bits, rows) of each run."""


def runs_of(bits: Tensor) -> Runs:
    """The runs of rows of these `bits` (rows,)."""
    values, counts = torch.unique_consecutive(bits, return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


def pack_runs(codes: Tensor, runs: Runs) -> Tensor:
    """Whole numbers (rows, columns) in the bits of their runs: int8 bytes, (bytes,)."""
    parts = zip(runs, codes.split([rows for _, rows in runs]), strict=True)  # type: ignore[no-untyped-call]
    packed = [pack_codes(part, bits).flatten() for (bits, _), part in parts if bits]
    return torch.cat([*packed, torch.zeros(0, dtype=torch.int8, device=codes.device)])


def unpack_runs(packed: Tensor, columns: int, runs: Runs) -> Tensor:
    """What `pack_runs` was given, (rows, columns) int8."""
    found, at = [torch.zeros(0, columns, dtype=torch.int8, device=packed.device)], 0
    for bits, rows in runs:
        size = rows * -(-columns * bits // 8)
        if bits:
            found.append(unpack_codes(packed[at : at + size].reshape(rows, -1), columns, bits))
        else:
            found.append(torch.zeros(rows, columns, dtype=torch.int8, device=packed.device))
        at += size
    return torch.cat(found)


def fewest_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fewest bits that give each row of `weight` (rows, columns) float32, with its codes and scale.

    A row that none gives is rounded to 8 bits. Returns (rows,) int64, whole numbers (rows, columns), (rows,).
    """
    codes, scale = quantize(weight, "int8")
    bits = torch.full((len(weight),), 8, device=weight.device)
    for choice in (4, 2):
        tried, its = quantize(weight, KINDS[choice])
        fits = ((tried * its[:, None] - weight).abs() <= 1e-3 * its[:, None]).all(1)
        codes, scale = torch.where(fits[:, None], tried, codes), torch.where(fits, its, scale)
        bits = torch.where(fits, choice, bits)
    return torch.where((weight == 0).all(1), 0, bits), codes, scale


class MixedBitLinear(LowBitLinear):
    """A linear layer whose rows have bits of their own, in `runs`; computes as `LowBitLinear`.

    State: buffers `weight` (int8, the bytes of `pack_runs`), `weight_scale` (out,) and `bias` (out,) float32.
    Raises ValueError for runs that are not the rows.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        runs: Runs,
        rounds: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if sum(rows for _, rows in runs) != out_features:
            raise ValueError(f"runs of {sum(rows for _, rows in runs)} rows in a matrix of {out_features}")
        most = max((bits for bits, _ in runs), default=0)
        super().__init__(in_features, out_features, bits=most or 1, rounds=rounds, bias=bias, device=device)
        self.bits, self.runs = most, runs
        size = sum(rows * -(-in_features * bits // 8) for bits, rows in runs)
        self.weight = torch.zeros(size, dtype=torch.int8, device=device)

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return len(self.weight_scale)

    def codes(self) -> Tensor:
        """The weights in units of their row's scale: (out, in) int8, unpacked at each call."""
        return unpack_runs(self.weight, self.columns, self.runs)

    def keep(self, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep only these output rows and input columns, in this order, in place. out, in_: 1-D int64 index tensors.

        Rows that are cut leave the others in the most bits that a row has, so that shapes never depend on which go.
        """
        codes, device = self.codes(), self.weight.device
        if out is not None:
            self.runs = ((self.bits, len(out)),)
            codes, self.weight_scale = codes[out.to(device)], self.weight_scale[out.to(device)]
            self.bias = None if self.bias is None else self.bias[out.to(device)]
        if in_ is not None:
            codes = codes[:, in_.to(device)]
            self.columns = codes.shape[1]
        self.weight = pack_runs(codes, self.runs)

    def extra_repr(self) -> str:
        """Shape and the bits of each run."""
        return f"{super().extra_repr()}, runs={self.runs}"


class Choices(nn.Module):
    """Which bits each group of rows takes: one row of numbers `a` (groups, 4) for all groups of a model.

    cost: (groups,), the share of the weights that each holds.  temperature: of the mixture.
    live: whether the mixture hands its gradient on to `a`.
    State: the parameter `a`, and buffers `chosen` (groups,), places in `CHOICES`, and `fixed` ().
    """

    cost: Tensor
    noise: Tensor
    chosen: Tensor
    fixed: Tensor

    def __init__(self, cost: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(len(cost), len(CHOICES), device=cost.device))
        self.temperature, self.live = 1.0, False
        self.register_buffer("cost", cost, persistent=False)
        self.register_buffer("noise", torch.zeros_like(self.a), persistent=False)
        self.register_buffer("chosen", torch.zeros(len(cost), dtype=torch.int64, device=cost.device))
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool, device=cost.device))

    def draw(self) -> None:
        """New noise from Gumbel's distribution."""
        self.noise.copy_(-torch.empty_like(self.noise).exponential_().log())

    def shares(self, which: slice) -> Tensor:
        """How much of each choice some groups take: a mixture in training, else the one chosen or the likeliest."""
        a = self.a[which]
        if bool(self.fixed) or not self.training:
            best = self.chosen[which] if bool(self.fixed) else a.argmax(1)
            return F.one_hot(best, len(CHOICES)).float()
        mixed = ((a + self.noise[which]) / self.temperature).softmax(1)
        return mixed if self.live else mixed.detach()

    def mean_bits(self, shares: Tensor) -> Tensor:
        """Bits a weight, of all weights. shares: (groups, 4)."""
        return (shares @ shares.new_tensor(CHOICES) * self.cost).sum()

    @torch.no_grad()
    def fix(self, target: float) -> None:
        """Choose the likeliest bits of each group, and fewer until `target` bits a weight are met.

        The group goes down first that loses the least of its `a` for a bit. Nothing is done twice.
        """
        if bool(self.fixed):
            return
        self.chosen.copy_(self.a.argmax(1))
        bits = self.a.new_tensor(CHOICES)
        while float(self.mean_bits(F.one_hot(self.chosen, len(CHOICES)).float())) > target + 1e-6:
            lower = bits[None] < bits[self.chosen][:, None]
            lost = self.a.gather(1, self.chosen[:, None]) - self.a
            saved = (bits[self.chosen][:, None] - bits[None]) * self.cost[:, None]
            price = (lost.clamp_min(1e-9) / saved).masked_fill(~lower, torch.inf)
            group = int(price.amin(1).argmin())
            self.chosen[group] = price[group].argmin()
        self.fixed.fill_(True)


class FakeMixed(nn.Module):
    """Lets a weight be used as the mixture of what its groups of rows are in 8, 4, 2 and no bits.

    which: its groups among those of `choices`.  sizes: rows of each.  transposed: the weight is stored as (in, out).
    """

    def __init__(self, choices: Choices, which: slice, sizes: list[int], *, transposed: bool = False) -> None:
        super().__init__()
        self.choices, self.which, self.transposed = choices, which, transposed
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: as it is stored. Returns the same shape, float32."""
        rows = (weight.t() if self.transposed else weight).float()
        shares = self.choices.shares(self.which).repeat_interleave(self.get_buffer("sizes"), dim=0)
        made = torch.zeros_like(rows)
        for place, bits in enumerate(CHOICES):
            share = shares[:, place, None]
            if bits and bool((share > 0).any()):
                with torch.no_grad():
                    codes, scale = quantize(rows, KINDS[bits])
                    rounded = codes * scale[:, None]
                made = made + share * _straight(rows, rounded)
        return made.t() if self.transposed else made
