"""Several processes that train one model together, as `torchrun` starts them. A single one is the first of one.

Each has a copy of the model and its own batches. Their gradients are added once a step, of every parameter that is
trained wherever it lies: torch's DistributedDataParallel knows only those that one forward of one module uses, and here
objectives ask twice, layers are dropped in one process and not in another, and penalties have no forward.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

_A_DAY = 86_400  # seconds that processes wait for the first one to ask the teachers, or to validate


def arguments(**options: Any) -> TrainingArguments:
    """`TrainingArguments`, the making of which lets the processes know of each other; that ends with the interpreter.

    One device a process: Trainer itself would spread a batch over all that it sees.
    """
    alone = not (distributed.is_available() and distributed.is_initialized())
    made = TrainingArguments(ddp_timeout=_A_DAY, **options)
    made._n_gpu = min(made.n_gpu, 1)
    if alone and distributed.is_available() and distributed.is_initialized():
        atexit.register(distributed.destroy_process_group)
    return made


def count() -> int:
    """How many processes train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which of them this is, from 0."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return number() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        distributed.barrier()


def summed(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the processes."""
    if count() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over the processes."""
    return summed(tensor) / count()


def told(number: float, device: torch.device) -> float:
    """`number` of the first process, everywhere: clocks and scores may differ."""
    if count() == 1:
        return number
    said = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.broadcast(said, src=0)
    return float(said)


def agree(key: str, device: torch.device) -> bool:
    """Whether all processes give the same `key`, 16 hexadecimal digits."""
    own = torch.tensor([int(key[:8], 16), int(key[8:], 16)], device=device)
    first = own.clone()
    if count() > 1:
        distributed.broadcast(first, src=0)
    return not summed((own != first).sum())


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradients of all processes. A parameter that only some used has none in the others, which counts as zero;
    one that nobody used has none afterwards either, so that the optimizer leaves it alone."""
    if count() == 1:
        return
    own = list(parameters)
    used = torch.tensor([one.grad is not None for one in own], dtype=torch.int32, device=own[0].device)
    distributed.all_reduce(used)
    waiting = []
    for one, users in zip(own, used.tolist(), strict=True):
        if users:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad.contiguous()
            waiting.append(distributed.all_reduce(one.grad, async_op=True))
    for work in waiting:
        work.wait()


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first one: ranges and averages that each observed on its own batches."""
    if count() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)
