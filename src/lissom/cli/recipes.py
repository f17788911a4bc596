"""`lissom recipes`: the catalogue, or one recipe."""

from __future__ import annotations

import click

from lissom.cli.group import verb
from lissom.cli.output import Output


@verb("recipes", "lissom recipes", "lissom recipes demo > mine.yaml", "lissom recipes --ready --json")
@click.argument("name", required=False)
@click.option("--ready", is_flag=True, help="Only what can be run now.")
def command(say: Output, *, name: str | None, ready: bool) -> None:
    """List every published system of the field and whether it can be run, or print one recipe as YAML.

    A recipe is printed with every option resolved: a file to start from.
    """
    from lissom.recipe import Recipe, catalogue

    if name is not None:
        recipe = Recipe.read(name)
        say.result({"recipe": recipe.as_dict()}, recipe.to_yaml().rstrip("\n"))
        return
    entries = [entry for entry in catalogue() if entry["status"] == "ready" or not ready]
    say.result({"recipes": entries})
    if say.quiet:
        say.print(*(entry["id"] for entry in entries))
        return
    shown = [
        [entry["id"], entry["name"], str(entry["year"] or ""), entry["family"], entry["status"]] for entry in entries
    ]
    say.table(["id", "name", "year", "family", "status"], shown)
    planned = sum(entry["status"] == "planned" for entry in entries)
    if planned:
        count = f"{len(entries) - planned} ready, {planned} planned"
        say.note(f"{count}: the methods of a planned one are not built yet.")
