"""Modules that stand in for original ones. They import torch only."""

from lissom.nn.bilstm import BiLstm
from lissom.nn.int8 import Int8Embedding, Int8Linear
from lissom.nn.kronecker import KroneckerEmbedding, KroneckerLinear
from lissom.nn.lora import LoraLinear
from lissom.nn.low_bit import LowBitEmbedding, LowBitLinear
from lissom.nn.low_rank import LowRankLinear
from lissom.nn.mapped_norm import MappedNorm
from lissom.nn.rms_norm import RmsNorm
from lissom.nn.scaled import ScaledLinear
from lissom.nn.tensor_train import TensorTrainEmbedding
from lissom.nn.thin_embedding import MixingEmbedding, ThinEmbedding

__all__ = [
    "BiLstm",
    "Int8Embedding",
    "Int8Linear",
    "KroneckerEmbedding",
    "KroneckerLinear",
    "LoraLinear",
    "LowBitEmbedding",
    "LowBitLinear",
    "LowRankLinear",
    "MappedNorm",
    "MixingEmbedding",
    "RmsNorm",
    "ScaledLinear",
    "TensorTrainEmbedding",
    "ThinEmbedding",
]
