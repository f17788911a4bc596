"""Recipe files: every trap of YAML has a tested message, what is written reads back, only LissomError escapes."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from lissom.errors import LissomError
from lissom.methods import METHODS, Given, Method, Need, Stage
from lissom.recipe import Recipe, catalogue
from lissom.strict_yaml import Document, dump


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted:
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Every kind of option that a method may have."""

    name: ClassVar[str] = "toy"
    stage: ClassVar[Stage] = Stage.WIDTH
    speed: ClassVar[str] = "does not change the speed"
    source: ClassVar[str] = "none"

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    rate: Annotated[float, Field(gt=0)] = 5e-5
    count: Annotated[int, Field(ge=1)] = 3
    keep: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = 3
    by: Literal["magnitude", "taylor"] = "magnitude"
    embeddings: bool = True
    label: str = "x"
    limit: Annotated[int, Field(ge=1)] | None = None
    learn: dict[str, Weighted] = dataclasses.field(default_factory=dict)
    during: Annotated[tuple[str, ...], Field(alias="while")] = ()

    def apply(self, editor, given):
        editor.model.calls.append((self, given.seed))
        given.report("working", 0.5)


def staged(name, stage, *needs):
    return dataclasses.dataclass(frozen=True, kw_only=True)(
        type(name, (Toy,), {"name": name, "stage": stage, "needs": frozenset(needs), "__annotations__": {}})
    )


TOYS = {
    "toy": Toy,
    "shallow": staged("shallow", Stage.DEPTH),
    "train": staged("train", Stage.TUNE, Need.TRAIN),
    "look": staged("look", Stage.WIDTH, Need.CALIBRATION),
    "copy": staged("copy", Stage.WIDTH, Need.TEACHER),
    "bits": staged("bits", Stage.BITS),
}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr("lissom.recipe.METHODS", TOYS)


def parse(steps, place="recipe.yaml"):
    return Recipe.parse(f"lissom: 1\nsteps:\n{steps}", place)


def error(text):
    with pytest.raises(LissomError) as caught:
        Recipe.parse(text, "recipe.yaml")
    return str(caught.value)


def option(text):
    """The error that this one option gives; it stands on line 4."""
    return error(f"lissom: 1\nsteps:\n  - toy:\n      {text}\n")


def test_reads_options_with_their_types():
    recipe = parse(
        "  - toy: {ratio: 1, rate: 1e-3, count: 1_000, keep: [0, 2], embeddings: false, while: [a, 'no']}\n"
        "  - train:\n      learn: {logits: {weight: 1, temperature: 2.0}}\n"
        "  - bits\n"
    )
    toy, train, bits = recipe.steps
    assert toy == Toy(ratio=1.0, rate=0.001, count=1000, keep=(0, 2), embeddings=False, during=("a", "no"))
    assert isinstance(toy.ratio, float)
    assert train.learn == {"logits": Weighted(weight=1.0, temperature=2.0)}
    assert bits == TOYS["bits"]()
    assert recipe.name == "recipe"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E3", 1000.0), ("+1.5e3", 1500.0), ("5.0e-5", 5e-5), (".5", 0.5), ("2", 2.0), ("5.", 5.0)],
)
def test_numbers_are_what_a_person_calls_numbers(text, value):
    assert parse(f"  - toy: {{rate: {text}}}\n").steps[0].rate == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtio: 0.5", 'LSM-312 recipe.yaml:4: unknown key "rtio" in toy. Did you mean "ratio"?'),
        ("ratio: 1.4", "LSM-314 recipe.yaml:4: ratio 1.4 is outside 0 to 1."),
        ("share: 1", "LSM-314 recipe.yaml:4: share 1 is outside 0 to 1 (1 excluded)."),
        ("count: 0", "LSM-314 recipe.yaml:4: count 0 is outside 1 and above."),
        ("keep: 0", "LSM-314 recipe.yaml:4: keep 0 is outside 1 and above."),
        ("keep: [1, -2]", "LSM-314 recipe.yaml:4: keep.1 -2 is outside 0 and above."),
        ("keep: many", 'LSM-313 recipe.yaml:4: keep "many" is not a list or a whole number.'),
        ("count: true", "LSM-313 recipe.yaml:4: count true is not a whole number."),
        ("count: 2.5", "LSM-313 recipe.yaml:4: count 2.5 is not a whole number."),
        ("ratio: true", "LSM-313 recipe.yaml:4: ratio true is not a number."),
        ('ratio: "0.5"', 'LSM-313 recipe.yaml:4: ratio "0.5" is not a number.'),
        ("ratio:", "LSM-313 recipe.yaml:4: ratio null is not a number."),
        ("embeddings: 1", "LSM-313 recipe.yaml:4: embeddings 1 is not true or false."),
        ("label: true", "LSM-313 recipe.yaml:4: label true is not text."),
        ("by: taylr", 'LSM-313 recipe.yaml:4: by "taylr" is not one of magnitude, taylor. Did you mean "taylor"?'),
        ("learn: {logits: {wight: 1}}", 'unknown key "wight" in toy.learn.logits. Did you mean "weight"?'),
        ("learn: {logits: {temperature: 0}}", "learn.logits.temperature 0 is outside 0 and above (0 excluded)."),
        ("during: [a]", 'LSM-312 recipe.yaml:4: unknown key "during" in toy.'),
        ("embeddings: no", "LSM-304 recipe.yaml:4: no has more than one meaning in YAML. Write true or false, or"),
        ("embeddings: On", "LSM-304 recipe.yaml:4: On has more than one meaning"),
        ("count: 010", "LSM-304 recipe.yaml:4: 010 has more than one meaning in YAML. Write a plain decimal number"),
        ("count: 0x1F", "LSM-304 recipe.yaml:4: 0x1F has more than one meaning"),
        ("count: 12:30", "LSM-304 recipe.yaml:4: 12:30 has more than one meaning in YAML. Put it in quotes."),
        ("label: 2026-11-22", "LSM-304 recipe.yaml:4: 2026-11-22 has more than one meaning in YAML. Put it in quotes."),
        ("rate: .inf", "LSM-304 recipe.yaml:4: .inf has more than one meaning in YAML. Write a finite number."),
        ("rate: -.NaN", "LSM-304 recipe.yaml:4: -.NaN has more than one meaning in YAML."),
        ("rate: 1e999", "LSM-304 recipe.yaml:4: 1e999 is too large a number."),
        ("count: 1" + 40 * "0", "has more than 18 digits."),
        ("ratio: 0.1\n      ratio: 0.2", 'LSM-305 recipe.yaml:5: the key "ratio" stands here for the second time.'),
        ("<<: {ratio: 1}", "LSM-304 recipe.yaml:4: merge keys (<<) are not accepted. Write the options out."),
        ("label: !!python/object/apply:os.system [x]", "LSM-303 recipe.yaml:4: not valid YAML: tags are not accepted."),
        ("label: !!str 3", "LSM-303 recipe.yaml:4: not valid YAML: tags are not accepted."),
        ("? [a]\n      : 1", "LSM-304 recipe.yaml:4: a list or a mapping stands where a key belongs."),
        ("ratio: 'open", "LSM-303 recipe.yaml:5: not valid YAML: found unexpected end of stream."),
        ("label: *nowhere", "LSM-303 recipe.yaml:4: not valid YAML: found undefined alias 'nowhere'."),
        ('label: "\\ud800"', "LSM-315 recipe.yaml:3: toy"),
        ("keep: " + 30 * "[", "LSM-303 recipe.yaml:4: not valid YAML: nested deeper than 20 levels."),
    ],
)
def test_a_wrong_option_is_named_with_its_line(text, message):
    assert message in option(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "LSM-308 recipe.yaml:1: a recipe is a mapping with lissom, name and steps."),
        ("- toy", "LSM-308 recipe.yaml:1: a recipe is a mapping"),
        (
            "steps: []",
            'LSM-307 recipe.yaml:1: the number of the recipe form is missing. This version reads "lissom: 1".',
        ),
        ("lissom: 2\nsteps: []", 'LSM-307 recipe.yaml:1: the recipe form is 2. This version reads "lissom: 1".'),
        ("lissom: true\nsteps: [toy]", "LSM-307 recipe.yaml:1: the recipe form is true."),
        ("lissom: 1\nstep: []", 'LSM-309 recipe.yaml:2: unknown key "step" in a recipe. Did you mean "steps"?'),
        ("lissom: 1\nsteps: []", "LSM-308 recipe.yaml:2: steps is not a list of methods."),
        ("lissom: 1\nname: 3\nsteps: [toy]", "LSM-308 recipe.yaml:2: name 3 is not a short text"),
        ("lissom: 1\nname: a\x1b[31m\nsteps: [toy]", "LSM-303 recipe.yaml:2: not valid YAML: special characters"),
        ('lissom: 1\nname: "a\\e[31m"\nsteps: [toy]', 'LSM-308 recipe.yaml:2: name "a\\u001b[31m" is not a short text'),
        ("lissom: 1\nsteps:\n  - toyy: {}", 'LSM-310 recipe.yaml:3: unknown method "toyy". Did you mean "toy"?'),
        (
            "lissom: 1\nsteps:\n  - os.system: {}",
            'LSM-310 recipe.yaml:3: unknown method "os.system". Known: bits, copy',
        ),
        ("lissom: 1\nsteps:\n  - toy: 3", "LSM-308 recipe.yaml:3: the options of toy are a mapping"),
        ("lissom: 1\nsteps:\n  - {toy: {}, bits: {}}", "LSM-308 recipe.yaml:3: a step is one method"),
        ("lissom: 1\nsteps:\n  - 3", "found 3."),
        ("lissom: 1\n---\nlissom: 1", "LSM-303 recipe.yaml:2: not valid YAML: but found another document."),
        ("a: " + 100_001 * "x", "LSM-302 recipe.yaml: 100004 bytes of YAML, at most 100000 are read."),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line(text, message):
    assert message in error(text)


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(LissomError, match="LSM-302 r: byte 0 is not UTF-8 text"):
        Recipe.parse("steps".encode("utf-16"), "r")


def test_aliases_are_followed_and_bombs_are_not():
    recipe = parse("  - toy: &same {ratio: 0.5}\n  - toy: *same\n")
    assert recipe.steps[0] == recipe.steps[1] == Toy(ratio=0.5)
    bomb = "lissom: 1\nsteps:\n  - toy:\n      keep: &a0 [0,0,0,0,0,0,0,0,0,0]\n"
    bomb += "".join(f"      k{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 12))
    assert "LSM-304" in (text := error(bomb))
    assert "the document is larger than 10000 values" in text
    assert "larger than 20 levels deep" in error("lissom: 1\nsteps: &all\n  - *all\n")


def test_a_file_names_itself_and_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("lissom: 1\nsteps:\n  - toy: {ratio: 2}\n")
    with pytest.raises(LissomError, match=r"LSM-314 mine\.yaml:3: ratio 2 is outside 0 to 1\."):
        Recipe.read("mine.yaml")
    with pytest.raises(LissomError, match=r"LSM-301 other\.yaml: there is no such recipe file"):
        Recipe.read("other.yaml")
    with pytest.raises(LissomError, match=r"LSM-302 .*: not a file"):
        Recipe.read(tmp_path)
    os.mkfifo("pipe.yaml")
    with pytest.raises(LissomError, match=r"LSM-302 pipe\.yaml: not a file"):
        Recipe.read("pipe.yaml")
    Path("good.yaml").write_text("\ufefflissom: 1\nsteps: [toy]\n", encoding="utf-8")
    assert Recipe.read(Path("good.yaml")) == Recipe("good", (Toy(),))


def test_an_unknown_name_is_explained():
    with pytest.raises(LissomError, match=r'LSM-301 no recipe is called "dmo"\. Did you mean "demo"'):
        Recipe.read("dmo")
    with pytest.raises(LissomError, match=r'LSM-311 the recipe "bertshare" is planned: a decoder is not made'):
        Recipe.read("bertshare")
    with pytest.raises(LissomError, match="LSM-301"):
        Recipe.read("")


def names(*steps):
    return Recipe("r", tuple(TOYS[step]() for step in steps))


@pytest.mark.parametrize("steps", [("shallow", "train", "toy", "train", "bits"), ("train", "bits"), ("toy", "toy")])
def test_a_right_order_passes(steps):
    names(*steps).check_order()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            ("toy", "shallow", "bits"),
            "LSM-316 r, step 2: shallow cannot follow toy. Write the steps in this order: shallow, toy, bits.",
        ),
        (("bits", "train"), "train cannot follow bits. Write the steps in this order: train, bits."),
        (("toy", "bits", "train"), "Write the steps in this order: toy, train, bits."),
        (("toy", "train", "shallow"), "Write the steps in this order: shallow, toy, train."),
    ],
)
def test_a_wrong_order_proposes_the_sorted_one(steps, message):
    with pytest.raises(LissomError) as caught:
        names(*steps).check(None, Given())
    assert message in str(caught.value)


def test_needs_are_checked_before_any_work():
    for step, message in [
        ("train", r"LSM-317 r, step 1 \(train\): needs labelled training data\. Give --data"),
        ("look", r"LSM-317 .*needs texts to look at\. Give --data\."),
        ("copy", r"LSM-317 .*needs the original model as its teacher"),
    ]:
        with pytest.raises(LissomError, match=message):
            names(step).check(None, Given())


def test_check_validates_steps_made_in_python():
    with pytest.raises(LissomError, match=r"LSM-314 r, step 1 \(toy\): ratio 7\.0 is outside 0 to 1"):
        Recipe("r", (Toy(ratio=7.0),)).check(None, Given())


def test_an_error_of_a_step_names_the_step():
    class Picky(Toy):
        def check(self, anatomy, given):
            raise LissomError(319, "the model has 2 layers", place="encoder", remedy="Keep fewer.")

    with pytest.raises(LissomError, match=r"LSM-319 r, step 1 \(toy\): encoder: the model has 2 layers\. Keep fewer\."):
        Recipe("r", (Picky(),)).check(None, Given())


class FakeEditor:
    def __init__(self):
        import torch

        self.model = torch.nn.Linear(2, 3)
        self.model.calls = []
        self.tokenizer = None


def test_run_applies_in_order_and_records():
    heard = []
    editor = FakeEditor()
    recipe = names("shallow", "train", "bits")
    records = recipe.run(editor, Given(seed=7, report=lambda what, fraction: heard.append((what, fraction))))
    assert editor.model.calls == [(step, 7) for step in recipe.steps]
    assert [record["name"] for record in records] == ["shallow", "train", "bits"]
    assert records[0]["options"]["ratio"] == 0.25
    assert records[0]["before"] == records[0]["after"] == 9
    assert heard[0] == ("step 1 of 3: shallow", 0.0)
    assert ("step 2 of 3: train, working", pytest.approx(11 / 22)) in heard
    assert heard[-1] == ("step 3 of 3: bits", 1.0)
    assert [fraction for _, fraction in heard] == sorted(fraction for _, fraction in heard)


def test_run_stops_at_weights_that_are_not_finite():
    class Broken(Toy):
        def apply(self, editor, given):
            editor.model.weight.data[1, 1] = float("nan")

    message = r"LSM-901 weight: 1 of 6 values are NaN or infinite after r, step 1 \(toy\)\."
    with pytest.raises(LissomError, match=message):
        Recipe("r", (Broken(),)).run(FakeEditor(), Given())
    editor = FakeEditor()
    editor.model.bias.data[0] = float("inf")
    with pytest.raises(LissomError, match="LSM-901 bias: 1 of 3 values are NaN or infinite before the first step"):
        names("toy").run(editor, Given())


FINITE = st.floats(allow_nan=False, allow_infinity=False)
STEPS = st.builds(
    Toy,
    ratio=st.floats(0, 1),
    share=st.floats(0, 1, exclude_max=True),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    count=st.integers(1, 10**12),
    keep=st.one_of(st.integers(1, 99), st.lists(st.integers(0, 99)).map(tuple)),
    by=st.sampled_from(["magnitude", "taylor"]),
    embeddings=st.booleans(),
    label=st.text(max_size=20)
    | st.sampled_from(
        ["no", "1e-3", "010", "12:30", "2026-11-22", "~", "", "<<", ".inf", "- a: b", "#", "'", "1_0", "."]
    ),
    limit=st.none() | st.integers(1, 9),
    learn=st.dictionaries(st.text(max_size=8), st.builds(Weighted, weight=st.floats(0, 9))),
    during=st.lists(st.text(max_size=5)).map(tuple),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, min_size=1, max_size=3))
def test_what_is_written_reads_back_equal(steps):
    recipe = Recipe("property", tuple(steps))
    assert Recipe.parse(recipe.to_yaml(), "r") == recipe


def test_write_resolves_every_option(tmp_path):
    recipe = parse("  - toy\n")
    recipe.write(tmp_path / "r.yaml")
    text = (tmp_path / "r.yaml").read_text()
    assert text.startswith("lissom: 1\nname: recipe\nsteps:\n- toy:\n    ratio: 0.25\n")
    assert "while: []" in text
    assert Recipe.read(tmp_path / "r.yaml") == recipe


WORDS = st.sampled_from(
    [
        *(
            "lissom",
            "steps",
            "name",
            "toy",
            "train",
            "bits",
            "ratio",
            "keep",
            "learn",
            "while",
            "1",
            "0.5",
            "1e-3",
            "no",
        ),
        *(
            "010",
            "12:30",
            "2026-01-01",
            ".inf",
            "~",
            "<<",
            "true",
            "-",
            ":",
            "?",
            "[",
            "]",
            "{",
            "}",
            ",",
            "&",
            "*",
            "&a",
        ),
        *(
            "*a",
            "!",
            "!!str",
            "!!python/name:x",
            "|",
            ">",
            "'",
            '"',
            "#",
            "%",
            "@",
            "`",
            "---",
            "...",
            "\\",
            "\n",
            "\n  ",
        ),
        *("\n    ", "\t", "\x00", "é", "\ud800"),
    ]
)
SCRAPS = st.lists(WORDS | st.text(max_size=6), max_size=40).map(" ".join)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | FINITE | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*TOYS, "ratio", "keep", "learn", "while", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def _only_explains(text):
    failure = None
    try:
        recipe = Recipe.parse(text, "r")
    except LissomError as error:
        failure = error
    if failure:
        assert failure.exit_code == 3
        assert "\n" not in str(failure)
    else:
        assert Recipe.parse(recipe.to_yaml(), "r") == recipe


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCRAPS, st.booleans())
def test_any_text_is_a_recipe_or_explained(text, started):
    _only_explains(("lissom: 1\nsteps:\n" if started else "") + text)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TREES, max_size=3))
def test_any_tree_is_a_recipe_or_explained(steps):
    _only_explains(dump({"lissom": 1, "steps": steps}))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES)
def test_dumped_values_read_back(tree):
    assert Document(dump(tree), "x").value == tree


def test_the_catalogue_lists_every_system_once():
    entries = catalogue()
    ids = [entry["id"] for entry in entries]
    assert len(ids) == len(set(ids)) > 327
    assert entries[0]["id"] == "demo"
    assert {entry["status"] for entry in entries} <= {"ready", "planned"}
    assert all(bool(entry["reason"]) == (entry["status"] == "planned") for entry in entries)
    systems = json.loads((resources.files("lissom") / "recipes" / "catalogue.json").read_text("utf-8"))
    ready = {entry["id"] for entry in entries if entry["status"] == "ready"}
    assert not [one["id"] for one in systems if "reason" in one and one["id"] in ready], "a reason that is over"


@pytest.mark.parametrize("entry", [e for e in catalogue() if e["status"] == "ready"], ids=lambda e: e["id"])
def test_packaged_recipes_read_and_stand_in_order(entry, monkeypatch):
    monkeypatch.setattr("lissom.recipe.METHODS", METHODS)
    recipe = Recipe.read(entry["id"])
    assert recipe.name == entry["id"]
    recipe.check_order()
    assert Recipe.parse(recipe.to_yaml(), "again") == recipe
