"""The methods by the name that a recipe uses.

`METHODS` reads like a dict of classes; a module is imported when its method is first asked for, so that listing names
costs nothing. Adding a method is one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import cast

from lissom.methods.base import Given, Method, Need, Stage

__all__ = ["METHODS", "Given", "Method", "Need", "Stage"]

_CLASSES = {
    "keep_layers": "pruning.keep_layers.KeepLayers",
    "prune_heads": "pruning.prune_heads.PruneHeads",
    "prune_neurons": "pruning.prune_neurons.PruneNeurons",
    "prune_units": "pruning.prune_units.PruneUnits",
    "rewind": "pruning.rewind.Rewind",
    "prune_weights": "pruning.prune_weights.PruneWeights",
    "sparsegpt": "pruning.sparsegpt.Sparsegpt",
    "prune_branches": "pruning.prune_branches.PruneBranches",
    "prune_hidden": "pruning.prune_hidden.PruneHidden",
    "prune_vocab": "pruning.prune_vocab.PruneVocab",
    "obert": "pruning.obert.Obert",
    "svd": "low_rank.svd.Svd",
    "factorize_vocabulary": "low_rank.factorize_vocabulary.FactorizeVocabulary",
    "tensor_train": "low_rank.tensor_train.TensorTrain",
    "kronecker": "low_rank.kronecker.Kronecker",
    "share_layers": "weight_sharing.share_layers.ShareLayers",
    "share_stacks": "weight_sharing.share_stacks.ShareStacks",
    "smooth": "quantization.smooth.Smooth",
    "int8": "quantization.int8.Int8",
    "peg": "quantization.peg.Peg",
    "rtn": "quantization.rtn.Rtn",
    "hqq": "quantization.hqq.Hqq",
    "gptq": "quantization.gptq.Gptq",
    "awq": "quantization.awq.Awq",
    "auto_round": "quantization.auto_round.AutoRound",
    "reconstruct": "quantization.reconstruct.Reconstruct",
    "mixed": "quantization.mixed.Mixed",
    "half": "quantization.half.Half",
    "codebook": "quantization.codebook.Codebook",
    "split_int8": "quantization.split_int8.SplitInt8",
    "integer": "quantization.integer.Integer",
    "kv_cache": "quantization.kv_cache.KvCache",
    "add_exits": "early_exit.add_exits.AddExits",
    "set_exits": "early_exit.set_exits.SetExits",
    "fresh_student": "distillation.fresh_student.FreshStudent",
    "bilstm_student": "distillation.bilstm_student.BilstmStudent",
    "tune": "distillation.tune.Tune",
}


class _Methods(Mapping[str, type[Method]]):
    def __getitem__(self, name: str) -> type[Method]:
        module, _, kind = _CLASSES[name].rpartition(".")
        return cast("type[Method]", getattr(importlib.import_module(f"lissom.methods.{module}"), kind))

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


METHODS: Mapping[str, type[Method]] = _Methods()
