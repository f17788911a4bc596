"""`lissom inspect`: where the parts of a model are, and which of them suffer from fewer bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from lissom.data import Data
    from lissom.stats.sensitivity import Sensitivity

_SHOWN = 20  # rows of the table; --json has all of them


@verb(
    "inspect",
    "lissom inspect my-model",
    "lissom inspect out --json",
    "lissom inspect my-model --sensitivity --data data --bits 4",
)
@click.argument("model")
@click.option("--sensitivity", is_flag=True, help="Round each linear map alone and show what that does to the answers.")
@options.data
@options.columns
@click.option("--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Of the rounded weights.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Texts that are looked at.")
@options.seed
@options.threads
@options.max_length
def command(
    say: Output,
    *,
    model: str,
    sensitivity: bool,
    data: str | None,
    columns: dict[str, str],
    bits: str,
    samples: int,
    seed: int,
    threads: int | None,
    max_length: int,
) -> None:
    """Show a model's anatomy, its parameters by part, its size, and which methods apply to it.

    With --sensitivity also how much each linear map suffers from int8, or from 4 bits, and which to keep out of it.
    That takes one pass over the texts a map.
    """
    from lissom.anatomy import dissect
    from lissom.compress import in_float32
    from lissom.data import load_data
    from lissom.plan import describe
    from lissom.stats.sensitivity import sensitivity as measured
    from lissom.store import load

    if sensitivity and data is None:
        raise click.UsageError("--sensitivity needs --data: texts that the model is asked about")
    if data is not None and not sensitivity:
        raise click.UsageError("--data is read with --sensitivity only")
    loaded = load(model)
    found: dict[str, Any] = {"model": model, **describe(loaded)}
    suffers = None
    if data is not None:
        loaded = in_float32(loaded)
        options.prepared("cpu", threads)
        batches = _texts(model, loaded, load_data(data, columns=columns), samples, seed=seed, max_length=max_length)
        with say.progress("sensitivity") as report:
            suffers = measured(loaded, dissect(loaded), batches, bits=int(bits), report=report)
        found["sensitivity"] = suffers.as_dict()
    share = found["parameters"] or 1
    wide = max(map(len, found["methods"])) + 2
    say.result(
        found,
        f"{found['class']} ({found['family']}), {found['parameters']:,} parameters, {found['size_mb']:.1f} MB",
        *map(_stack, found["stacks"]),
        "",
        *(f"{part:<14}{count:>14,}  {count / share:4.0%}" for part, count in found["parts"].items()),
        "",
        *(f"{name:<{wide}}{verdict}" for name, verdict in found["methods"].items()),
    )
    if suffers is not None:
        _show(say, suffers)


def _texts(
    name: str, model: PreTrainedModel, data: Data, samples: int, *, seed: int, max_length: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of training texts; of any, where the data has neither training nor validation texts."""
    from lissom.compress import readable_length
    from lissom.stats.batches import calibration_batches
    from lissom.store import load_tokenizer

    tokenizer = load_tokenizer(name)
    if not {"train", "validation"} & set(data.splits):
        data = data.with_validation(seed)
    limit = readable_length(model, tokenizer, max_length)
    return calibration_batches(data, tokenizer, samples=samples, max_length=limit, seed=seed)


def _show(say: Output, found: Sensitivity) -> None:
    from lissom.stats.sensitivity import MEASURES, RULE

    shown = found.slots[:_SHOWN]
    say.print("", f"Each map alone with {found.bits} bit weights and 8 bit inputs, the most damaging first:", "")
    say.table(
        ["map", "weights", "weights dB", "output dB", "damage"],
        [[one.path, f"{one.weights:,}", _db(one.weight_db), _db(one.output_db), f"{one.damage:.3g}"] for one in shown],
    )
    rest = len(found.slots) - len(shown)
    more = [f"and {rest} more that damage less; --json lists all"] if rest else []
    keep = ", ".join(found.keep) or "none stand out"
    say.print(*more, "", f"damage: {MEASURES[found.measure]}, over {found.answers:,} answers")
    say.print(f"keep in higher precision: {keep} (by the rule: {RULE})")
    if found.step:
        from lissom.strict_yaml import dump

        say.print("a step of a recipe that does so:", "", *dump([found.step]).splitlines())


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _stack(stack: dict[str, Any]) -> str:
    kinds: dict[str, None] = {}
    for block in stack["blocks"]:
        shared = "" if block["kv_heads"] == block["heads"] else f" ({block['kv_heads']} for keys and values)"
        kinds[f"{block['heads']} heads{shared}, feed-forward {block['width']:,}"] = None
    blocks = len(stack["blocks"])
    own = "" if blocks == stack["layers"] else f" with {blocks} sets of weights"
    return f"{stack['name']}: {stack['layers']} layers{own}: {'; '.join(kinds)}"
