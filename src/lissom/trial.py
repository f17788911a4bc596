"""Which form of a model is the fastest here: each is exported, proved, and timed beside the others on texts.

Every engine that is installed and holds the form takes part. What cannot be exported stays in the table, with the
reason. Nothing that is written here is kept.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lissom.errors import LissomError
from lissom.export import export
from lissom.measure.loyalty import loyalty
from lissom.measure.quality import answer, ask_for, texts_of
from lissom.measure.speed import race, speed
from lissom.methods.base import Trial
from lissom.runtime import TorchRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.data import Data
    from lissom.runtime import Runner

ENGINES = {"onnx": ("onnxruntime", "ONNX Runtime"), "openvino": ("openvino", "OpenVINO")}
"""Export target -> the package that runs it, and its name."""
TEXTS = 256
_SINGLES = 1  # what is compared is throughput


def tried(
    forms: Mapping[str, PreTrainedModel],
    *,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    rounds: int = 5,
    report: Callable[[str, float], None] = lambda phrase, fraction: None,
) -> list[Trial]:
    """Texts a second and loyalty to the first form, as torch computes it, of each form in each engine.

    forms: name -> model.  `TEXTS` validation texts are drawn with `seed`, training texts where there is no such split:
    on texts that a model was trained on it is surer, and rounding changes fewer answers.
    """
    rows = data.split("validation" if "validation" in data.splits else "train").shuffle(seed=seed + 1)
    texts = texts_of(rows.select(range(min(TEXTS, len(rows)))), data.task)
    first = TorchRunner(next(iter(forms.values())), tokenizer, max_length=max_length)
    reference = answer(first, texts, data.task)
    found: list[Trial] = []
    runners: dict[str, tuple[str, str, Runner]] = {}
    engines = {one: named for one, (package, named) in ENGINES.items() if importlib.util.find_spec(package)}
    with tempfile.TemporaryDirectory(prefix="lissom-") as work:
        for number, (form, model) in enumerate(forms.items()):
            for target, engine in engines.items():
                report(f"{form} for {engine}", 0.6 * number / len(forms))
                try:
                    made = export(model, target, Path(work) / str(len(runners) + len(found)), tokenizer=tokenizer)
                    runners[f"{form} in {engine}"] = form, engine, made.runner(max_length=max_length)
                except LissomError as error:
                    found.append(Trial(form=form, engine=engine, why=str(error)))
        if not runners:
            return found
        times = race(
            {name: runner for name, (_, _, runner) in runners.items()},
            texts,
            ask_for(data.task.kind),
            rounds=rounds,
            singles=_SINGLES,
            report=lambda what, fraction: report(what, 0.6 + 0.4 * fraction),
        )
        for name, (form, engine, runner) in runners.items():
            pace = next(one for one in speed(times[name], seed) if one.name == "throughput")
            alike = loyalty(answer(runner, texts, data.task), reference, data.task, seed)[0]
            found.append(
                Trial(
                    form=form,
                    engine=engine,
                    texts_per_s=pace.value,
                    low=pace.low,
                    high=pace.high,
                    loyalty=alike.value,
                    why="" if alike.value is not None else alike.how,
                )
            )
    return found
