"""Pareto charts as Vega-Lite specifications: quality against speed, size and computation.

A specification is built here and never read from a file. Text from rows stands only in data values and titles, which
Vega draws as text; there is no `href` and no `url` channel. Colours are CSS variables of the page, so that one picture
serves light, dark and print.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

from lissom.bench.comparison import Reading, Row, find, latest, names, quality, reading
from lissom.bench.format import clean, interval, number
from lissom.bench.pareto import pareto
from lissom.bench.table import LABELS, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lissom.bench.pareto import Better

Spec = dict[str, Any]
Point = dict[str, Any]

AGAINST = ("throughput", "size_mb", "flops")
_Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
_WIDTH, _HEIGHT = 255, 220  # of the plot in pixels; labels are placed for this size
_LETTER = 6.3  # mean width of a letter at 11.5 px
_LONGEST = 22  # letters of a name beside its point; the whole name is in the tooltip and the table


def charts(rows: Sequence[Row], reference: str | None = None, *, floor: float | None = None) -> dict[str, Spec]:
    """One Vega-Lite specification for each of AGAINST that at least two rows can be drawn in, by its name.

    floor: the lowest quality that is good enough, in the unit of the quality; drawn as a dashed line.
    Raises LissomError LSM-215, LSM-843 or LSM-844 when the rows cannot be compared.
    """
    shown = latest(rows)
    base = find(shown, reference)
    judged = quality(base or shown[0])
    if judged is None:
        return {}
    specs = {}
    for name in AGAINST:
        points = _points(shown, base, judged["name"], name)
        if len(points) > 1:
            along = next(found for row in shown if (found := reading(row, name)))
            specs[name] = _spec(points, judged, {**along, "unit": points[0]["unit"]}, floor)
    return specs


def picture(spec: Spec) -> str:
    """The chart as a still SVG, for readers without script. Drawn in this process, without a browser and network."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(json.dumps(spec | {"width": _WIDTH + 60}))
    return svg


def _points(rows: Sequence[Row], base: Row | None, judged: str, name: str) -> list[Point]:
    drawn = [
        (row, clean(called), up, along)
        for row, called in zip(rows, names(rows), strict=True)
        if (up := reading(row, judged)) and (along := reading(row, name))
    ]
    if not drawn:
        return []
    unit, scale = scaled(drawn[0][3]["name"], drawn[0][3]["unit"], [along["value"] for *_, along in drawn])
    directions = [_direction(drawn[0][2]), _direction(drawn[0][3])]
    front = pareto([(up["value"], along["value"]) for _, _, up, along in drawn], directions)
    return [
        {
            "subject": called,
            "label": called if len(called) <= _LONGEST else called[: _LONGEST - 1] + "…",
            "standing": "reference" if row is base else "on the front" if best else "beaten",
            "front": best,
            "unit": clean(unit),
            **_coordinates("x", along, unit, scale),
            **_coordinates("y", up, up["unit"], 1.0),
        }
        for (row, called, up, along), best in zip(drawn, front, strict=True)
    ]


def _coordinates(axis: str, found: Reading, unit: str, scale: float) -> Point:
    """The place of a reading on an axis, the ends of its interval, and both in words for the tooltip."""
    value = found["value"] / scale
    low, high = (None if end is None else end / scale for end in (found["low"], found["high"]))
    ends = interval(low, high)
    return {
        axis: value,
        f"{axis}_low": value if low is None else low,
        f"{axis}_high": value if high is None else high,
        f"{axis}_text": f"{number(value, low, high)} {clean(unit)}".strip() + (f" ({ends})" if ends else ""),
    }


def _direction(found: Reading) -> Better:
    return "lower" if found["better"] == "lower" else "higher"


def _spec(points: list[Point], judged: Reading, along: Reading, floor: float | None) -> Spec:
    x, y = _x_axis(points, along), _y_axis(points, floor)
    _place_labels(points, x["scale"], y["scale"])
    label, quantity = LABELS[along["name"]], LABELS[judged["name"]]
    bars = {"type": "rule", "color": "var(--faint)", "strokeWidth": 1.5}
    # Of a budget along x the best that it buys: with less is better the last point before it, else the next one after.
    steps = "step-after" if _direction(along) == "lower" else "step-before"
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {
                "type": "line",
                "interpolate": steps,
                "color": "var(--accent)",
                "strokeWidth": 1.25,
                "opacity": 0.55,
            },
            "encoding": {"x": x, "y": y, "order": {"field": "x", "type": "quantitative"}},
        },
        {"mark": bars, "encoding": {"x": x, "y": y | {"field": "y_low"}, "y2": {"field": "y_high"}}},
        {"mark": bars, "encoding": {"y": y, "x": x | {"field": "x_low"}, "x2": {"field": "x_high"}}},
        _marks(x, y, label, quantity),
        {
            "mark": {
                "type": "text",
                "fontSize": 11.5,
                "color": "var(--ink)",
                "baseline": "middle",
                "align": {"expr": "datum.align"},
                "dx": {"expr": "datum.dx"},
                "dy": {"expr": "datum.dy"},
            },
            "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
        },
    ]
    if floor is not None:
        rule = {"type": "rule", "color": "var(--muted)", "strokeDash": [4, 4]}
        layers.insert(0, {"mark": rule, "encoding": {"y": {"datum": floor, "type": "quantitative"}}})
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{quantity} against {label}, one point a model; the table has the same numbers",
        "width": "container",
        "height": _HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": points},
        "layer": layers,
        "config": _CONFIG,
    }


def _marks(x: Spec, y: Spec, label: str, quantity: str) -> Spec:
    """The points: shape and fill tell the standing, colour only repeats it."""
    standings = ["reference", "on the front", "beaten"]

    def by_standing(*values: object) -> Spec:
        return {
            "field": "standing",
            "type": "nominal",
            "legend": None,
            "scale": {"domain": standings, "range": list(values)},
        }

    return {
        "mark": {"type": "point", "filled": True, "size": 85, "strokeWidth": 1.75, "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "shape": by_standing("diamond", "circle", "circle"),
            "fill": by_standing("var(--mark)", "var(--accent)", "var(--page)"),
            "stroke": by_standing("var(--mark)", "var(--accent)", "var(--muted)"),
            "tooltip": [
                {"field": "subject", "type": "nominal", "title": "model"},
                {"field": "y_text", "type": "nominal", "title": quantity},
                {"field": "x_text", "type": "nominal", "title": label},
                {"field": "standing", "type": "nominal", "title": "standing"},
            ],
        },
    }


def _x_axis(points: list[Point], along: Reading) -> Spec:
    low, high = min(point["x_low"] for point in points), max(point["x_high"] for point in points)
    wide = low > 0 and high > 20 * low
    scale = {"type": "log", "domain": [low / 1.4, high * 1.4]} if wide else {"domain": [min(0, low), high * 1.06 or 1]}
    label, unit = LABELS[along["name"]], along["unit"]
    return {
        "field": "x",
        "type": "quantitative",
        "title": f"{label}, {unit}" if unit else label,
        "scale": scale | {"nice": False},
        "axis": {"format": ",~f", "tickCount": 4, "grid": False},
    }


def _y_axis(points: list[Point], floor: float | None) -> Spec:
    ends = [*(point["y_low"] for point in points), *(point["y_high"] for point in points)]
    ends += [] if floor is None else [floor]
    low, high = min(ends), max(ends)
    pad = 0.12 * (high - low) or 0.01 * abs(high) or 0.5
    domain = [low - pad, high + pad]
    return {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "scale": {"domain": domain, "nice": False, "zero": False},
        "axis": {"tickCount": 4, "format": "~f"},
    }


def _place_labels(points: list[Point], x: Spec, y: Spec) -> None:
    """Writes `align`, `dx` and `dy` into each point: the place beside it where its label covers least.

    A beaten point whose label would cover something loses it; its name is in the tooltip.
    """
    spots = [(_share(point["x"], x) * _WIDTH, (1 - _share(point["y"], y)) * _HEIGHT) for point in points]
    taken = [(across - 6, down - 6, across + 6, down + 6) for across, down in spots]
    for point, (across, down) in sorted(
        zip(points, spots, strict=True), key=lambda one: one[0]["standing"] == "beaten"
    ):
        wide = _LETTER * len(point["label"])
        choices = []
        for dx, dy in itertools.product((9, -9), (-11, 11, -24, 24)):
            left = across + dx - (wide if dx < 0 else 0)
            box = (left, down + dy - 6, left + wide, down + dy + 6)
            outside = 5 * (max(0, -left) + max(0, left + wide - _WIDTH))
            choices.append((abs(dy) + outside + 100 * sum(_overlap(box, other) for other in taken), dx, dy, box))
        cost, dx, dy, box = min(choices, key=lambda choice: choice[0])
        if cost > abs(dy) and point["standing"] == "beaten":
            point["label"] = ""
        else:
            taken.append(box)
        point.update(align="right" if dx < 0 else "left", dx=dx, dy=dy)


def _share(value: float, scale: Spec) -> float:
    low, high = map(float, scale["domain"])
    if scale.get("type") == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "labelFontSize": 11.5,
        "titleColor": "var(--muted)",
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "axisX": {"domain": True, "domainColor": "var(--faint)", "ticks": True, "tickColor": "var(--faint)", "tickSize": 4},
}
