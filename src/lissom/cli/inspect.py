"""`lissom inspect`: where the parts of a model are."""

from __future__ import annotations

from typing import Any

import click

from lissom.cli.group import verb
from lissom.cli.output import Output


@verb("inspect", "lissom inspect my-model", "lissom inspect out --json")
@click.argument("model")
def command(say: Output, *, model: str) -> None:
    """Show a model's anatomy, its parameters by part, its size, and which methods apply to it."""
    from lissom.plan import describe
    from lissom.store import load

    found = describe(load(model))
    share = found["parameters"] or 1
    say.result(
        {"model": model, **found},
        f"{found['class']} ({found['family']}), {found['parameters']:,} parameters, {found['size_mb']:.1f} MB",
        *map(_stack, found["stacks"]),
        "",
        *(f"{part:<14}{count:>14,}  {count / share:4.0%}" for part, count in found["parts"].items()),
        "",
        *(f"{name:<16}{verdict}" for name, verdict in found["methods"].items()),
    )


def _stack(stack: dict[str, Any]) -> str:
    kinds: dict[str, None] = {}
    for block in stack["blocks"]:
        shared = "" if block["kv_heads"] == block["heads"] else f" ({block['kv_heads']} for keys and values)"
        kinds[f"{block['heads']} heads{shared}, feed-forward {block['width']:,}"] = None
    blocks = len(stack["blocks"])
    own = "" if blocks == stack["layers"] else f" with {blocks} sets of weights"
    return f"{stack['name']}: {stack['layers']} layers{own}: {'; '.join(kinds)}"
