"""Exits of a stack of layers: heads that answer early, and the driver that takes texts out of the running batch.

`Exits` is a child of the model and hooks into calls of the model and of its blocks, so that the model's own code runs
as it is. In inference mode, and in an exported graph, a text that is answered leaves the batch: its row is taken out of
the hidden states and of whatever else the blocks get for each row, and no later layer computes it. The answers come
back in the order of the batch. Otherwise (with gradients, or where somebody looks at layers with gradients off) all
rows go through all layers, and the answers are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lissom.nn.exit_rules import NOBODY, RULES, Memory, Seen

_CALL = threading.RLock()  # what a call has in hand is kept on the model, so two threads must not run it at once


class ExitHead(nn.Module):
    """Logits (texts, classes) from a state (texts, hidden): one map, or a dense layer with tanh and a map."""

    def __init__(self, hidden: int, classes: int, *, pooled: bool, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden) if pooled else None
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, state: Tensor) -> Tensor:
        """state: (texts, hidden)."""
        if self.dense is not None:
            state = torch.tanh(self.dense(state))
        logits: Tensor = self.classifier(self.drop(state))
        return logits


@dataclasses.dataclass
class _Run:
    """One call of the model. No tensor is an attribute of a module meanwhile, which a traced model must not have.

    leaving: whether rows leave the batch; else they only get their answers early, or, where `collect`, none does.
    layer: how many have run.  count: rows that came in, and `rows` (n,) the numbers of those that are still there.
    answers, layers: (count, classes) and (count,) of those that have left, 0 for the others.
    taken: what was taken out of the blocks' arguments since rows left last, by the identity of the whole; `kept` keeps
    those alive.
    """

    mask: Tensor | None
    thresholds: Tensor | None
    leaving: bool
    collect: bool
    layer: int = 0
    count: int = 0
    rows: Tensor | None = None
    answers: Tensor | None = None
    layers: Tensor | None = None
    memory: Memory = ()
    states: list[Tensor] = dataclasses.field(default_factory=list)
    taken: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    kept: list[Tensor] = dataclasses.field(default_factory=list)

    def take(self, whole: Any) -> Any:
        """The rows of `whole` that are still there."""
        if not isinstance(whole, Tensor) or self.rows is None:
            return whole
        if id(whole) not in self.taken:
            self.taken[id(whole)] = whole.index_select(0, self.rows)
            self.kept.append(whole)
        return self.taken[id(whole)]


class Exits(nn.Module):
    """Heads after some layers, and when a text may leave at them.

    layers: after how many executed layers each exit stands, ascending.  depth: executed layers of the stack.
    per_row: names of the arguments of a block that hold something for each row of the batch.
    reads: the state of the first token, or the mean over the tokens of a text.
    judge: whether a map (hidden, 1) is trained to tell right answers from wrong ones; all exits share it.

    rule, constant: see `lissom.nn.exit_rules`; without a rule nobody leaves.  points: named thresholds, a number an
    exit.  use: the point that holds where a call gives no `exit_thresholds` (exits,) of its own.

    collecting: whether calls are made for what the heads read, as those with labels are.

    A model with exits answers `logits`; `exit_layer` (texts,) int64, after how many layers each text was answered; and,
    in training and where labels are given, `exit_states`, a list of (texts, hidden), what each head reads. Then the
    logits are those of the last layer.
    """

    def __init__(
        self,
        hidden: int,
        classes: int,
        layers: Sequence[int],
        depth: int,
        *,
        per_row: Sequence[str] = ("attention_mask",),
        pooled: bool = False,
        reads: Literal["first", "mean"] = "first",
        judge: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.depth, self.per_row, self.reads = tuple(layers), depth, tuple(per_row), reads
        self.heads = nn.ModuleList(ExitHead(hidden, classes, pooled=pooled, dropout=dropout) for _ in self.layers)
        self.judge = nn.Linear(hidden, 1) if judge else None
        self.rule: str | None = None
        self.constant = 0.0
        self.points: dict[str, tuple[float, ...]] = {}
        self.use = ""
        self.collecting = False
        self._run: _Run | None = None
        self._blocks: list[nn.Module] = []  # in a list they are no children
        self._own: list[Any] = []

    def attach(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Hook into the calls of `model` and of the distinct `blocks` of its stack. Calling it again does nothing."""
        if self._begin not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(self._begin, with_kwargs=True)
            model.register_forward_hook(self._finish, with_kwargs=True, always_call=True)
        self._blocks = list(blocks)
        for block in blocks:
            if self._before not in block._forward_pre_hooks.values():
                block.register_forward_pre_hook(self._before, with_kwargs=True)
                block.register_forward_hook(self._after)

    def thresholds(self, device: torch.device | str = "cpu") -> Tensor:
        """Those of the point in use, float32 (exits,)."""
        point = self.points.get(self.use, (NOBODY,) * len(self.layers))
        return torch.tensor(point, dtype=torch.float32, device=device)

    def answer(self, number: int, state: Tensor) -> Tensor:
        """The logits (texts, classes) of exit `number`, from 0, for states (texts, hidden)."""
        logits: Tensor = self.heads[number](state)
        return logits

    def judged(self, state: Tensor) -> Tensor | None:
        """(texts,), how right the judge takes the answer from this state to be, 0 to 1; None without a judge."""
        return None if self.judge is None else self.judge(state)[:, 0].sigmoid()

    def scores(self, states: Sequence[Tensor]) -> Tensor:
        """The scores of the rule in use at all exits, (exits, texts), as if nobody left."""
        found, memory = [], cast("Memory", ())
        for number, state in enumerate(states):
            score, memory = self._score(number, state, self.answer(number, state), memory)
            found.append(score)
        return torch.stack(found)

    def _score(self, number: int, state: Tensor, logits: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        seen = Seen(logits=logits, judged=self.judged(state), number=number + 1, constant=self.constant)
        return RULES[cast("str", self.rule)].score(seen, memory)

    def _begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the model: what kind of call this is."""
        _CALL.acquire()
        thresholds = kwargs.pop("exit_thresholds", None)
        collect = model.training or self.collecting or kwargs.get("labels") is not None
        config = getattr(model, "config", None)
        shown = ("output_hidden_states", "output_attentions")
        looked_at = collect or any(kwargs.get(name, getattr(config, name, False)) for name in shown)
        exporting = torch.compiler.is_exporting()
        leaving = not looked_at and (exporting or torch.is_inference_mode_enabled())
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
        if collect or self.rule is not None:
            self._run = _Run(mask=mask, thresholds=thresholds, leaving=leaving, collect=collect)
        return args, kwargs

    def _finish(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After the model, also where it failed: put the early answers in their places."""
        try:
            return self._finished(output)
        finally:
            with contextlib.suppress(RuntimeError):  # the call failed before it came to `_begin`
                _CALL.release()

    def _finished(self, output: Any) -> Any:
        run, self._run = self._run, None
        for block, own in zip(self._blocks, self._own, strict=False):
            vars(block).pop("forward", None)
            vars(block).update({} if own is None else {"forward": own})
        self._own = []
        if output is None or run is None or run.layer != self.depth:
            return output
        if run.collect:
            if not isinstance(output, tuple):
                output["exit_states"] = run.states
            return output
        layers, answers = cast("Tensor", run.layers), cast("Tensor", run.answers)
        early = layers > 0
        last = output[0] if isinstance(output, tuple) else output["logits"]
        logits = torch.where(early[:, None], answers.to(last.dtype), last)
        if isinstance(output, tuple):
            return (logits, *output[1:])
        output["logits"] = logits
        output["exit_layer"] = torch.where(early, layers, self.depth)
        return output

    def _before(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a block: of all that it gets beside the states, only the rows that are still there."""
        run = self._run
        if run is None or not run.leaving or run.rows is None:
            return None
        names = _parameters(block.forward)
        made = tuple(run.take(one) if name in self.per_row else one for name, one in zip(names, args, strict=False))
        named = {name: run.take(one) if name in self.per_row else one for name, one in kwargs.items()}
        return (*made, *args[len(made) :]), named

    def _after(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After a block: answer, let texts go, and after the last block give all rows back."""
        run = self._run
        if run is None:
            return None
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        run.layer += 1
        here = run.layer in self.layers
        if run.collect:
            if here:
                run.states.append(self._state(run, hidden))
            return None
        if run.answers is None:
            self._open(run, hidden)
        if here:
            hidden = self._let_go(run, hidden, self.layers.index(run.layer))
            if run.leaving and not torch.compiler.is_exporting() and not hidden.shape[0]:
                self._idle(output)
        if run.layer == self.depth and run.leaving:
            whole = hidden.new_zeros((run.count, *hidden.shape[1:]))
            hidden = whole.index_put((cast("Tensor", run.rows),), hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _idle(self, output: Any) -> None:
        """Let the blocks hand on what they get for the rest of the call: torch cannot shape what is empty.

        output: what a block gives.
        """
        rest = output[1:] if isinstance(output, tuple) else None

        def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states if rest is None else (hidden_states, *rest)

        if not self._own:
            self._own = [vars(block).get("forward") for block in self._blocks]
        for block in self._blocks:
            cast("Any", block).forward = hand_on

    def _open(self, run: _Run, hidden: Tensor) -> None:
        run.count = hidden.shape[0]
        run.rows = torch.arange(run.count, device=hidden.device)
        classes = cast("ExitHead", self.heads[0]).classifier.out_features
        run.answers = hidden.new_zeros((run.count, classes))
        run.layers = torch.zeros_like(run.rows)
        if run.thresholds is None:
            run.thresholds = self.thresholds(hidden.device)

    def _state(self, run: _Run, hidden: Tensor) -> Tensor:
        """What heads read, (rows, hidden)."""
        if self.reads == "first":
            return hidden[:, 0]
        if run.mask is None:
            return hidden.mean(1)
        weights = run.take(run.mask).to(hidden.dtype) if run.leaving else run.mask.to(hidden.dtype)
        return (weights[:, None, :] @ hidden)[:, 0] / weights.sum(-1, keepdim=True)

    def _let_go(self, run: _Run, hidden: Tensor, number: int) -> Tensor:
        """Answer at exit `number`; returns the states of those that stay."""
        rows, answers = cast("Tensor", run.rows), cast("Tensor", run.answers)
        layers, thresholds = cast("Tensor", run.layers), cast("Tensor", run.thresholds)
        state = self._state(run, hidden)
        logits = self.answer(number, state).to(answers.dtype)  # autocast gives them in fewer bits than states
        score, run.memory = self._score(number, state, logits, run.memory)
        sure = score >= thresholds[number]
        if not run.leaving:
            sure = sure & (layers == 0)
            run.answers = torch.where(sure[:, None], logits, answers)
            run.layers = torch.where(sure, run.layer, layers)
            return hidden
        going, staying = sure.nonzero()[:, 0], (~sure).nonzero()[:, 0]
        gone = rows.index_select(0, going)
        run.answers = answers.index_put((gone,), logits.index_select(0, going))
        run.layers = layers.index_put((gone,), torch.full_like(gone, run.layer))
        run.memory = tuple(one.index_select(0, staying) for one in run.memory)
        run.rows, run.taken, run.kept = rows.index_select(0, staying), {}, []
        return hidden.index_select(0, staying)


def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(forward).parameters)
