"""`lissom export`: files for other runtimes."""

from __future__ import annotations

import shlex

import click

from lissom.cli import options
from lissom.cli.group import verb
from lissom.cli.output import Output


@verb(
    "export",
    "lissom export out --to onnx --out exported",
    "lissom export out --to openvino --out exported --force --json",
)
@click.argument("model", metavar="DIR")
@click.option(
    "--to", "target", required=True, metavar="TARGET", help="The format: onnx, openvino or compressed-tensors."
)
@options.out("The folder to write.")
@options.force
def command(say: Output, *, model: str, target: str, out: str, force: bool) -> None:
    """Write a model for another runtime, and prove that it answers as the original does.

    The folder has tokenizer and config beside the graph and works without lissom and torch.
    """
    from lissom.export import export

    options.check_folder(out, force, reads=(model,))
    made = export(model, target, out, force=force)
    files = [file.relative_to(out).as_posix() for file in made.files]
    size = sum(file.stat().st_size for file in made.files) / 1e6
    say.result(
        {"folder": out, "target": target, "files": files, "parity": made.parity, "notes": list(made.notes)},
        out if say.quiet else f"{out}: {len(files)} files, {size:.1f} MB, answers as torch does",
    )
    for note in made.notes:
        say.note(note)
    say.note(f"Next: lissom measure {shlex.quote(out)} --vs {shlex.quote(model)} --data DATA")
