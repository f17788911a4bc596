"""Write the generated parts of README.md and docs/, and the picture of the measured result.

    python docs/generate.py            write them
    python docs/generate.py --check    change nothing; exit 1 and name what is stale

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of PARTS.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src"), str(ROOT)]

import measured  # noqa: E402 (beside this file)
from measured import REFERENCE, table  # noqa: E402

ROWS = ROOT / "results" / "demo.jsonl"
PICTURE = ROOT / "docs" / "demo.svg"
WIDTH = 100  # of the help texts, in letters
_PART = re.compile(r"(<!-- generated: ([\w -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

HEADS = {
    "AutoModel": "bare",
    "AutoModelForSequenceClassification": "texts",
    "AutoModelForTokenClassification": "words",
    "AutoModelForQuestionAnswering": "questions",
    "AutoModelForMultipleChoice": "choices",
    "AutoModelForMaskedLM": "masked",
    "AutoModelForCausalLM": "causal",
    "AutoModelForSeq2SeqLM": "seq2seq",
}


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)


# families


def families() -> str:
    """Which model types there are, by family."""
    from lissom.anatomy import FAMILIES

    found = {family.name: family for family in FAMILIES.values()}.values()
    return table(
        ["family", "model types of transformers", "stacks"],
        (
            [
                family.name,
                ", ".join(f"`{one}`" for one in family.types),
                " and ".join(one.name for one in family.stacks),
            ]
            for family in found
        ),
    )


def heads() -> str:
    """Which heads transformers has for each model type; the contract tests build every one of them."""
    from lissom.anatomy import FAMILIES
    from tests import tiny

    has: dict[str, set[str]] = {name: set() for name in FAMILIES}
    for variant, (model_type, _) in tiny.CONFIGS.items():
        has[model_type] |= set(tiny.heads(variant))
    return table(
        ["model type", *HEADS.values()],
        ([f"`{name}`", *("yes" if head in found else "" for head in HEADS)] for name, found in has.items()),
    )


# methods and objectives


def methods() -> str:
    """The methods in one line each."""
    from lissom.methods import METHODS, Stage

    rows = []
    for name, kind in METHODS.items():
        stage = "before int8" if kind.stage is Stage.TUNE else kind.stage.name.lower()
        needs = ", ".join(sorted(need.value for need in kind.needs)) or "nothing"
        rows.append([f"[`{name}`](docs/methods.md#{name})", stage, needs, kind.speed])
    return table(["method", "stage", "needs", "speed"], rows)


def options(name: str) -> str:
    """The options of a method, its source and its stage."""
    from lissom.methods import METHODS
    from lissom.methods.options import schema

    kind = METHODS[name]
    found = schema(kind)
    rows = _option_rows(found["properties"], found, kind)
    return f"{_options_table(rows)}\nSpeed: {kind.speed}.\nSource: {kind.source}.\n"


def objective(name: str) -> str:
    """The options of an objective of `tune`."""
    from lissom.train.objectives import OBJECTIVES

    kind = OBJECTIVES[name]
    return f"{_options_of(kind)}\nSource: {kind.source}.\n"


def during(name: str) -> str:
    """The options of something that acts while `tune` trains."""
    from lissom.train.during import DURING

    kind = DURING[name]
    return f"{_options_of(kind)}\nSpeed: {kind.speed}.\nSource: {kind.source}.\n"


def augment() -> str:
    """The options of `augment` of `tune`."""
    from lissom.data.augment import Augment

    return _options_of(Augment)


def _options_of(kind: type[Any]) -> str:
    from pydantic import TypeAdapter

    found = TypeAdapter(kind).json_schema()
    return _options_table(_option_rows(found.get("properties", {}), found, kind))


def _options_table(rows: list[list[str]]) -> str:
    return table(["option", "value", "default", "what it is"], rows)


def _option_rows(properties: dict[str, Any], whole: dict[str, Any], kind: type[Any]) -> list[list[str]]:
    defaults = {field.name.rstrip("_"): field.default for field in dataclasses.fields(kind)}
    return [
        [f"`{name}`", _value(part, whole), _default(defaults[name]), part.get("description", "").rstrip(".")]
        for name, part in properties.items()
    ]


def _value(part: dict[str, Any], whole: dict[str, Any]) -> str:
    """What may stand there, in words."""
    from lissom.methods.options import _range

    if "$ref" in part:
        kind = part["$ref"].rpartition("/")[2]
        return {"Ramp": "ramp", "Augment": "options by name"}.get(kind, "objectives by name")
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_value(one, whole) for one in part["anyOf"]))
    if "enum" in part or "const" in part:
        return ", ".join(f"`{one}`" for one in part.get("enum", [part.get("const")]))
    if part["type"] == "array":
        return f"list of {_items(part.get('items') or part['prefixItems'], whole)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    return " ".join(filter(None, [words.get(part["type"], part["type"]), _range(part)]))


def _items(inner: Any, whole: dict[str, Any]) -> str:
    """What a list holds, in words."""
    if isinstance(inner, list) or "prefixItems" in inner:
        return "pairs"
    if "$ref" in inner:
        return "entries by name"
    words = {"number": "numbers", "integer": "whole numbers", "string": "texts"}
    return _value(inner, whole) if "enum" in inner else words[inner["type"]]


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        own = {one.name: one.default for one in dataclasses.fields(value)}
        said = ", ".join(f"{name}: {json.dumps(one)}" for name, one in given.items() if one != own[name])
        return f"`{{{said}}}`"
    return "required" if value is dataclasses.MISSING else f"`{json.dumps(value)}`"


# recipes, readings, command line


def recipes() -> str:
    """The packaged recipes: name, steps, and the comment they start with."""
    from lissom.recipe import Recipe

    rows = []
    for path in sorted((resources.files("lissom") / "recipes").iterdir(), key=lambda one: one.name):
        if path.name.endswith(".yaml"):
            text = path.read_text("utf-8")
            about = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
            steps = Recipe.read(path.name.removesuffix(".yaml")).steps
            names = ", ".join(f"`{step.name}`" for step in steps)
            rows.append([f"`{path.name.removesuffix('.yaml')}`", names, " ".join(about)])
    return table(["recipe", "steps", "what it is"], rows)


def metrics() -> str:
    """Every reading: name, unit, direction, meaning."""
    from lissom.measure import METRICS

    return table(
        ["reading", "unit", "better", "what"],
        ([f"`{name}`", one.unit, one.better, one.what] for name, one in METRICS.items()),
    )


def command_line() -> str:
    """The help of lissom and of every verb."""
    import click

    from lissom.cli.group import VERBS, group

    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    top = click.Context(group, info_name="lissom", help_option_names=["-h", "--help"], **width)
    parts = [f"```text\n{group.get_help(top)}\n```\n"]
    for name in VERBS:
        verb = cast("click.Command", group.get_command(top, name))
        context = click.Context(verb, parent=top, info_name=name, **width)
        parts.append(f"## {name}\n\n```text\n{verb.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


# the measured result


def result() -> str:
    """The table of results/demo.jsonl, or how to make it."""
    if not ROWS.exists():
        return (
            "No measured row is committed yet. `make demo` measures on your machine and leaves the rows in\n"
            "`lissom-demo/rows.jsonl`; copied to `results/demo.jsonl`, `python docs/generate.py` shows them here.\n"
        )
    from lissom.bench.rows import read_rows
    from lissom.bench.table import markdown
    from lissom.bench.verdict import verdict

    rows = read_rows([ROWS])
    row, said = rows[-1], verdict(rows, REFERENCE).sentence
    place, data = row["machine"], row["data"]
    about = f"{place['cpu']}, {place['threads']} threads, {', '.join(place['instructions'])}"
    packages = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "onnxruntime", "transformers"))
    runtimes = ", ".join(f"{one['subject']} in {one['runtime']}" for one in rows)
    texts = f"{data['n']} texts of the {data['split']} split of {data['name']}"
    provenance = (
        f"Measured by `lissom demo` on {about}; {packages}; {runtimes}; {texts}. Intervals are 95 %. "
        "The rows, with how each number was taken, are in [results/demo.jsonl](results/demo.jsonl)."
    )
    return (
        f"![Quality against speed, size and computation, original and compressed](docs/{PICTURE.name})\n\n"
        f"{said[0].upper()}{said[1:]}\n\n"
        f"{markdown(rows, REFERENCE)}\n"
        f"{textwrap.fill(provenance, 118, break_long_words=False)}\n"
    )


def _origin() -> str:
    """A comment that says from which rows the picture was drawn."""
    return f"<!-- rows sha256 {hashlib.sha256(ROWS.read_bytes()).hexdigest()} -->"


def picture() -> str | None:
    """docs/demo.svg: the charts of the report side by side, in its light colours; None without rows."""
    if not ROWS.exists():
        return None
    from lissom.bench.charts import charts
    from lissom.bench.charts import picture as draw
    from lissom.bench.comparison import quality
    from lissom.bench.rows import read_rows
    from lissom.bench.table import LABELS

    rows = read_rows([ROWS])
    judged = quality(rows[0])
    specs = charts(rows, REFERENCE)
    if judged is None or not specs:
        return None
    colours = re.findall(r"--(\w+): (#\w+);", resources.files("lissom.bench").joinpath("report.css").read_text("utf-8"))
    light: dict[str, str] = {}
    for name, colour in colours:  # the first of each name is the light one
        light.setdefault(name, colour)
    parts, left, tallest = [], 12, 0
    for name, spec in specs.items():
        svg = draw(spec)
        wide, tall = (round(float(re.search(rf'{side}="([\d.]+)', svg)[1])) for side in ("width", "height"))  # type: ignore[index]
        title = f"{LABELS[judged['name']]} against {LABELS[name][0].lower() + LABELS[name][1:]}"
        title = title.replace("fLOPs", "FLOPs")
        parts.append(
            f'<text x="{left + 4}" y="20" font-family="system-ui, sans-serif" font-size="13" '
            f'fill="{light["ink"]}">{title}</text>\n'
            + re.sub(r"<svg ", f'<svg x="{left}" y="30" ', re.sub(r"clip(\d+)", rf"{name}-clip\1", svg), count=1)
        )
        left, tallest = left + wide + 12, max(tallest, tall)
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left}" height="{tallest + 38}" '
        f'viewBox="0 0 {left} {tallest + 38}">\n'
        f'{_origin()}\n<rect width="100%" height="100%" fill="{light["page"]}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
    return re.sub(r"var\(--(\w+)\)", lambda found: light[found[1]], whole)


PARTS: dict[str, Callable[[], str]] = {
    **measured.PARTS,
    "families": families,
    "heads": heads,
    "methods": methods,
    "augment": augment,
    "recipes": recipes,
    "metrics": metrics,
    "command line": command_line,
    "result": result,
}
TAKING_A_NAME: dict[str, Callable[[str], str]] = {"options": options, "objective": objective, "during": during}


def part(name: str) -> str:
    """The generated part called `name`: a key of PARTS, or "options METHOD" or "objective NAME"."""
    first, _, rest = name.partition(" ")
    return TAKING_A_NAME[first](rest) if first in TAKING_A_NAME else PARTS[name]()


def filled(text: str) -> str:
    """A page with its generated parts as they should be."""
    return _PART.sub(lambda found: f"{found[1]}{part(found[2])}{found[4]}", text)


def wanted() -> dict[Path, str]:
    """File -> what it should hold, for every page with generated parts and the picture."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page: filled(page.read_text("utf-8")) for page in pages}
    drawn = picture()
    return found if drawn is None else {**found, PICTURE: drawn}


def stale() -> list[Path]:
    """The files that differ from what they should hold; the picture when it was drawn from other rows.

    Where the picture's letters stand depends on the fonts of the machine, so it is not compared as a whole.
    """
    return [path for path, text in wanted().items() if not path.exists() or not _same(path, text)]


def _same(path: Path, text: str) -> bool:
    return _origin() in path.read_text("utf-8") if path == PICTURE else path.read_text("utf-8") == text


def main(arguments: Sequence[str]) -> int:
    """Write what is stale, or only name it."""
    found = stale()
    for path in found:
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if "--check" not in arguments:
            path.write_text(wanted()[path], "utf-8")
    return 1 if found and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
