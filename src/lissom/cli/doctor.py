"""`lissom doctor`: what this machine has, and what does not fit together."""

from __future__ import annotations

from lissom.cli.group import verb
from lissom.cli.output import Output


@verb("doctor", "lissom doctor", "lissom doctor --json")
def command(say: Output) -> None:
    """Show versions, CPU features, accelerators, energy sources, extras and bad combinations."""
    from lissom.doctor import examine

    found = examine()
    machine = found["machine"]
    instructions = ", ".join(machine["instructions"]) or "no known instruction sets"
    say.result(
        found,
        f"CPU           {machine['cpu']}",
        f"              {machine['threads']} threads, {instructions}",
        *(f"{form:<13} {what}" for form, what in found["forms"].items()),
        f"memory        {machine['memory_gb']} GB, {found['free_memory_gb']} GB free",
        f"accelerators  {', '.join(found['accelerators']) or 'none'}",
        f"energy        {', '.join(found['energy']) or 'nothing that can be measured'}",
        f"versions      {', '.join(f'{name} {version}' for name, version in found['versions'].items())}",
        *(f"extra         {name}: {state}" for name, state in found["extras"].items()),
        *(f"PROBLEM       {problem}" for problem in found["problems"]),
    )
    if not found["problems"]:
        say.note("Nothing is wrong.")
