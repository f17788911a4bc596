"""What sentence-transformers keeps beside a model: how the states of its tokens become the embedding of a text.

    modules.json  sentence_bert_config.json  1_Pooling/config.json  config_sentence_transformers.json

Read and written as data; the classes that modules.json names are never imported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, cast

from lissom.errors import LissomError
from lissom.files.reading import inside, read_json
from lissom.files.writing import write_json

MODULES, LENGTH, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling"
PROMPTS = "config_sentence_transformers.json"
_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
_REMEDY = f"Without {MODULES} the folder is read as the mean over the tokens."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentence:
    """How an encoder's states become an embedding.

    pooling: the mean over the real tokens, or the state of the first one.  normalize: scaled to length 1.
    max_length: tokens that a text is cut at; None where only the model and its tokenizer limit it.
    """

    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: int | None = None


def read_sentence(folder: Path) -> Sentence | None:
    """What the files in `folder` say; None where there is no modules.json.

    Raises LissomError LSM-436 for a pooling or a module that is not known here, and for texts that are changed before
    they are read (lower case, a prompt in front); and as `read_json` and `inside`.
    """
    path = inside(folder, MODULES, hard_links=True)
    if not path.is_file():
        return None
    modules = read_json(path, limit_mb=1)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise LissomError(436, "it is no list of modules", place=str(path), remedy=_REMEDY)
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        cause = f"it asks for {', '.join(kinds)[:200]}; lissom computes Transformer, Pooling and Normalize"
        raise LissomError(436, cause, place=str(path), remedy=_REMEDY)
    _check_texts_stay(folder)
    return Sentence(
        pooling=_pooling(folder, str(modules[1].get("path"))),
        normalize=len(kinds) > 2,
        max_length=_length(inside(folder, LENGTH, hard_links=True)),
    )


def write_sentence(sentence: Sentence, folder: Path, width: int) -> None:
    """Write the files, as every version of sentence-transformers reads them. width: of the embeddings."""
    kinds = {"": "Transformer", POOLING: "Pooling", **({"2_Normalize": "Normalize"} if sentence.normalize else {})}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / MODULES, modules)
    if sentence.max_length is not None:
        write_json(folder / LENGTH, {"max_seq_length": sentence.max_length, "do_lower_case": False})
    (folder / POOLING).mkdir()
    flags = {flag: mode == sentence.pooling for mode, flag in _FLAGS.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width, **flags})


def _pooling(folder: Path, name: str) -> Literal["mean", "cls"]:
    path = inside(folder, f"{name}/config.json", hard_links=True)
    entries: Any = read_json(path, limit_mb=1)
    entries = entries if isinstance(entries, dict) else {}
    prefix = "pooling_mode_"
    flags = [key.removeprefix(prefix) for key, value in entries.items() if key.startswith(prefix) and value is True]
    wanted = entries.get("pooling_mode", flags)  # older files have a flag a mode, newer ones a name
    wanted = wanted if isinstance(wanted, list) else [wanted]
    known = {"mean": "mean", "cls": "cls", **{flag.removeprefix(prefix): mode for mode, flag in _FLAGS.items()}}
    if len(wanted) != 1 or wanted[0] not in known:
        cause = f"it pools by {', '.join(map(str, wanted))[:200] or 'nothing'}; lissom knows mean and cls"
        raise LissomError(436, cause, place=str(path), remedy=_REMEDY)
    return cast("Literal['mean', 'cls']", known[wanted[0]])


def _check_texts_stay(folder: Path) -> None:
    for name, key in ((LENGTH, "do_lower_case"), (PROMPTS, "default_prompt_name")):
        path = inside(folder, name, hard_links=True)
        entries = read_json(path, limit_mb=1) if path.is_file() else None
        if isinstance(entries, dict) and entries.get(key):
            cause = f"{key} changes a text before it is read, which lissom does not do"
            remedy = f"Take {key} out of the file, and change the texts beforehand."
            raise LissomError(436, cause, place=str(path), remedy=remedy)


def _length(path: Path) -> int | None:
    entries = read_json(path, limit_mb=1) if path.is_file() else None
    found = entries.get("max_seq_length") if isinstance(entries, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None
