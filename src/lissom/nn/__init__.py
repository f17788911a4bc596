"""Modules that stand in for original ones. They import torch only."""

from lissom.nn.int8 import Int8Embedding, Int8Linear
from lissom.nn.low_rank import LowRankLinear

__all__ = ["Int8Embedding", "Int8Linear", "LowRankLinear"]
