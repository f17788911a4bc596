"""Drop the tokens that the data does not use: rows of the token table, of the output projection, and the tokenizer's.

The table is a third to a half of a small encoder, and most of its rows are for words of other texts. A text all of
whose tokens stay gets the same tokens and the same answers; other texts are read in smaller pieces, and `did` says how
many. After Abdaoui et al. 2020, "Load what you need: smaller versions of multilingual BERT", section 3, which keeps the
tokens of one language; ours keeps what makes every text readable, and the tokens on the way to a kept one (BPE).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from lissom import edits
from lissom.anatomy import Anatomy, vocabulary
from lissom.data.vocabulary import cut_tokenizer, needed, tokens_of, unknown
from lissom.edits import Editor
from lissom.errors import LissomError
from lissom.methods.base import Given, Method, Need, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.data import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneVocab(Method):
    """Keep the tokens of the training texts (of validation where there is no train split), whole texts, all columns.

    Besides them stay: all special and added tokens, what the model's config names, single letters or bytes, and for BPE
    the tokens from which kept ones are joined. The tokenizer is rewritten with the model.
    """

    name: ClassVar[str] = "prune_vocab"
    stage: ClassVar[Stage] = Stage.VOCABULARY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    speed: ClassVar[str] = (
        "saves space; runs faster only where logits of all tokens are computed, slower on texts that fall to pieces"
    )
    source: ClassVar[str] = "Abdaoui et al. 2020, section 3"

    at_least: Annotated[int, Field(ge=1, description="times that a token must stand in the texts to stay")] = 1
    keep: Annotated[
        float,
        Field(gt=0, le=1, description="share of the tokens that stays for the texts, the most frequent first"),
    ] = 1.0

    def check(self, anatomy: Anatomy, given: Given) -> None:
        """Raises LSM-317 without a tokenizer, LSM-734 for one without a fast version, LSM-318 for one that has more
        tokens than the model, LSM-715 for a model without a token table."""
        if given.tokenizer is None:
            raise LissomError(317, "there is no tokenizer to take tokens out of", remedy="Give one.")
        needed(given.tokenizer, ())
        rows, tokens = vocabulary(cast("PreTrainedModel", anatomy.model)).size, len(given.tokenizer)
        if tokens > rows:
            raise LissomError(318, f"the tokenizer has {tokens} tokens, the model {rows}")

    def apply(self, editor: Editor, given: Given) -> dict[str, Any]:
        """Count the tokens, cut the model and give it the tokenizer that is left."""
        if given.data is None or given.tokenizer is None:
            raise LissomError(317, "needs texts to look at", remedy="Give --data.")
        found = vocabulary(editor.model)
        read = "train" if "train" in given.data.splits or "validation" not in given.data.splits else "validation"
        counts = Counter(token for ids in tokens_of(given.data.split(read), given.tokenizer) for token in ids)
        often = [token for token, times in counts.most_common() if times >= self.at_least]
        tokens = needed(given.tokenizer, often[: max(1, round(self.keep * found.size))])
        tokens |= {*found.named, *range(found.first)}
        made = given.tokenizer
        if len(tokens) < found.size:
            editor.apply(edits.KeepVocab.of(editor.model, tokens))
            made = editor.tokenizer = cut_tokenizer(given.tokenizer, tokens)
        others = [name for name in given.data.splits if name != read]
        said = {"tokens_before": found.size, "tokens_after": len(tokens), "texts_read": len(given.data.split(read))}
        return said | (_elsewhere(given.data, others, given.tokenizer, made, tokens) if others else {})


def _elsewhere(
    data: Data, splits: list[str], old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, kept: set[int]
) -> dict[str, Any]:
    """What happens to the texts of `splits`, which decided nothing.

    unchanged_texts: share that has the same tokens as before.  changed_tokens: share of the tokens that fell to pieces.
    longer_by: how many more tokens the changed texts have now, as a share of what they had.
    new_unknown: share of the tokens that became the unknown one, which no smaller pieces are known for.
    """
    texts = same = tokens = lost = before = after = unread = 0
    nothing_then, nothing_now = unknown(old), unknown(new)
    for split in splits:
        rows = data.split(split)
        for then, now in zip(tokens_of(rows, old), tokens_of(rows, new), strict=True):
            gone = sum(token not in kept for token in then)
            texts, tokens, lost, same = texts + 1, tokens + len(then), lost + gone, same + (not gone)
            unread += sum(one == nothing_now for one in now) - sum(one == nothing_then for one in then)
            if gone:
                before, after = before + len(then), after + len(now)
    return {
        "other_texts": texts,
        "unchanged_texts": same / max(texts, 1),
        "changed_tokens": lost / max(tokens, 1),
        "longer_by": after / before - 1 if before else 0.0,
        "new_unknown": unread / max(tokens, 1),
    }
