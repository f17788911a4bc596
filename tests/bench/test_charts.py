import pytest

from lissom.bench.charts import charts, picture

from .samples import pair, reading, row


def placed(name, quality, size, **kind):
    return row(
        name,
        readings=[
            reading("accuracy", quality, **kind),
            reading("size_mb", size, unit="MB", better="lower"),
        ],
    )


def test_one_chart_for_each_cost_that_two_rows_have():
    assert list(charts(pair(), "original")) == ["throughput", "size_mb", "flops"]
    assert list(charts([placed("a", 0.9, 10), placed("b", 0.8, 5)])) == ["size_mb"]
    assert charts([row()]) == {}
    assert charts([row(readings=[]), row("b", readings=[])]) == {}


def test_standings_shapes_and_the_front():
    rows = [placed("big", 0.9, 100), placed("small", 0.8, 10), placed("bad", 0.7, 50)]
    spec = charts(rows, "big", floor=0.75)["size_mb"]
    points = {point["subject"]: point for point in spec["data"]["values"]}
    assert {name: point["standing"] for name, point in points.items()} == {
        "big": "reference",
        "small": "on the front",
        "bad": "beaten",
    }
    assert [name for name, point in points.items() if point["front"]] == ["big", "small"]
    floor, line, *_, marks, text = spec["layer"]
    assert floor["encoding"]["y"]["datum"] == 0.75
    assert line["mark"]["interpolate"] == "step-after"
    assert marks["encoding"]["shape"]["scale"]["range"] == ["diamond", "circle", "circle"]
    assert text["encoding"]["text"]["field"] == "label"


@pytest.mark.parametrize(("sizes", "kind"), [((10, 30), None), ((1, 300), "log"), ((0, 300), None)])
def test_far_apart_costs_get_a_logarithmic_axis(sizes, kind):
    spec = charts([placed("a", 0.9, sizes[0]), placed("b", 0.8, sizes[1])])["size_mb"]
    scale = spec["layer"][0]["encoding"]["x"]["scale"]
    assert scale.get("type") == kind
    assert scale["domain"][0] <= sizes[0] < sizes[1] < scale["domain"][1]


def test_counts_are_drawn_with_a_prefix():
    spec = charts(pair(), "original")["flops"]
    assert [point["x"] for point in spec["data"]["values"]] == [1.356, 0.678]
    assert spec["layer"][0]["encoding"]["x"]["title"] == "FLOPs, GFLOP"


def test_labels_of_equal_points_do_not_cover_each_other():
    spec = charts([placed(f"model {number}", 0.9, 10) for number in range(3)])["size_mb"]
    corners = [(point["dx"], point["dy"]) for point in spec["data"]["values"]]
    assert len(set(corners)) == 3


def test_the_still_picture_is_drawn_in_the_colours_of_the_page():
    still = picture(charts(pair(), "original")["size_mb"])
    assert still.startswith("<svg")
    assert 'fill="var(--accent)"' in still
    assert "style=" not in still  # the policy would refuse it
    assert ">result<" in still


def test_flat_quality_and_lower_is_better_still_draw():
    rows = [placed("a", 0, 10, better="lower"), placed("b", 0, 20, better="lower")]
    spec = charts(rows)["size_mb"]
    assert [point["front"] for point in spec["data"]["values"]] == [True, False]
    assert ">a<" in picture(spec)
