"""The report: one HTML file that says what came out, shows the evidence and asks no network for anything.

Every string that reaches the page is hostile: Jinja escapes it, the JSON for the charts is escaped so that it cannot
leave its script element, and a content security policy allows exactly the one script and the one style sheet written
here, by hash. `report.html.j2`, `report.css` and `report.js` lie beside this file.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from lissom.bench.charts import charts, picture
from lissom.bench.comparison import Reading, Row, find, latest, names, quality
from lissom.bench.format import clean, number
from lissom.bench.rows import check_row
from lissom.bench.table import LABELS, NO_DIFFERENCE, Line, lines
from lissom.bench.verdict import verdict
from lissom.files import write_text

_DIRECTIONS = {"↑": "↑ higher", "↓": "↓ lower", "": ""}


class Gate(TypedDict):
    """A gate and its outcome: `text` ("keep >= 0.98"), `met`, what was `found` in words.

    floor: the lowest quality that meets it, in the unit of the quality; drawn in the charts.
    """

    text: str
    met: bool
    found: NotRequired[str]
    floor: NotRequired[float]


def report(
    rows: Sequence[Row],
    path: str | Path,
    *,
    reference: str | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    gate: Gate | None = None,
    reproduce: Sequence[str] | None = None,
    title: str = "Compression report",
) -> None:
    """Writes the report on `rows` to `path`, whole or not at all; the same input gives the same bytes.

    reference: the subject that the others are compared with; without one nothing is compared.
    steps: what each step of the recipe did: `name`, `options`, `seconds`, the numbers of parameters `before` and
        `after`, and perhaps a `note` in words.  reproduce: the command lines that lead here.
    Raises LissomError LSM-841 (a row is not valid), LSM-843 or LSM-844 (rows that cannot be compared), LSM-215 (no such
    reference), LSM-602 or LSM-603 (the file cannot be written).
    """
    for place, row in enumerate(rows, start=1):
        check_row(row, f"row {place}")
    page = _page(rows, reference=reference, steps=steps or (), gate=gate, reproduce=reproduce or (), title=title)
    write_text(Path(path), page)


def _page(
    rows: Sequence[Row],
    *,
    reference: str | None,
    steps: Sequence[Mapping[str, Any]],
    gate: Gate | None,
    reproduce: Sequence[str],
    title: str,
) -> str:
    from markupsafe import Markup

    shown = latest(rows)
    base = find(shown, reference)
    specs = charts(shown, reference, floor=gate.get("floor") if gate else None)
    judged = quality(base or shown[0])
    called = names(shown)
    compared = lines(shown, reference)
    script, style = _script() if specs else "", _asset("report.css")
    page: str = _template().render(
        title=title,
        policy=_policy([script] if script else [], style),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - the bundle of vl_convert around our own file
        data=Markup(_inert_json({"rows": rows, "charts": specs})),  # noqa: S704 - escaped by _inert_json
        verdict=verdict(shown, reference),
        gate=gate,
        subjects=called,
        base=None if base is None else shown.index(base),
        lines=compared,
        directions=_DIRECTIONS,
        no_difference=NO_DIFFERENCE,
        charts=[(name, LABELS[name], _best(judged, name), Markup(picture(spec))) for name, spec in specs.items()],  # noqa: S704
        quality=LABELS[judged["name"]] if judged else "",
        floor=bool(gate and "floor" in gate),
        steps=steps,
        options=_options,
        number=number,
        hows=_hows(compared, shown, called),
        reproduce=reproduce,
        facts=_facts(shown, called),
    )
    return page


def _best(judged: Reading | None, name: str) -> str:
    """The good corner of a chart."""
    up = "down" if judged is not None and judged["better"] == "lower" else "up"
    return f"{up} and {'right' if name == 'throughput' else 'left'}"


def _template() -> Any:
    import jinja2

    def finalize(value: object) -> object:
        """Escaping handles markup; this takes out what steers or hides text. Our own Markup passes as it is."""
        return clean(value, keep_lines=True) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True, finalize=finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return resources.files("lissom.bench").joinpath(name).read_text("utf-8")


@functools.cache
def _script() -> str:
    """Vega, Vega-Lite and Vega-Embed with report.js in one script; none of them becomes a global name."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(_asset("report.js"))
    return bundle.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _policy(scripts: Sequence[str], style: str) -> str:
    """Nothing is allowed but these scripts and this style sheet."""
    allowed = " ".join(map(_source, scripts)) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src {_source(style)}; base-uri 'none'; form-action 'none'"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert_json(value: object) -> str:
    """JSON that no HTML parser takes for markup: < > & are escaped, and so is all beyond ASCII (U+2028 and 2029)."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _options(options: Mapping[str, Any]) -> str:
    """The options as a recipe would write them on one line."""
    import yaml

    plain = json.loads(json.dumps(options, default=str))
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return str(text).strip()[1:-1] or "defaults"


def _hows(
    compared: Sequence[Line], rows: Sequence[Row], called: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each quantity how it was taken; with the subjects where they differ."""
    found = []
    for line in compared:
        by_subject = {
            name: one["how"] + (f" (n\u00a0=\u00a0{one['n']:,})" if one["n"] else "")
            for name, row in zip(called, rows, strict=True)
            for one in row["readings"]
            if one["name"] == line.name and one["how"] and one["value"] is not None
        }
        found.append((line.label, _merged(by_subject)))
    return [(label, texts) for label, texts in found if texts]


def _facts(rows: Sequence[Row], called: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Machine, versions, data, seed and runtime; with the subjects where they differ."""
    flat = [dict(_flat(row)) for row in rows]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    return [
        (key, _merged({name: facts.get(key, "-") for name, facts in zip(called, flat, strict=True)})) for key in keys
    ]


def _flat(row: Row) -> list[tuple[str, str]]:
    found = []
    for key in ("data", "seed", "runtime", "machine", "versions"):
        if isinstance(row[key], Mapping):
            found += [(f"{key}: {name}", _word(value)) for name, value in row[key].items()]
        else:
            found.append((key, _word(row[key])))
    return found


def _merged(by_subject: Mapping[str, str]) -> list[tuple[str, str]]:
    """(text, the subjects it is true of) once for each different text; no subjects where all agree."""
    texts = dict.fromkeys(by_subject.values())
    if len(texts) == 1:
        return [(text, "") for text in texts]
    return [(text, ", ".join(name for name, own in by_subject.items() if own == text)) for text in texts]


def _word(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
