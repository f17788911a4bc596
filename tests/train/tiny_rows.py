"""Tiny encoded data sets, as `lissom.data.encode` gives them."""

import datasets
import torch

VOCABULARY = 99


def rows(kind: str = "classification", count: int = 40, seed: int = 0) -> datasets.Dataset:
    """Rows of 4 to 11 tokens; the label is decided by the first token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    ids = [draw(3, VOCABULARY, length) for length in draw(4, 12, count)]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
    if kind == "classification":
        columns["labels"] = [one[0] % 3 for one in ids]
    elif kind == "regression":
        columns["labels"] = [one[0] / VOCABULARY for one in ids]
    elif kind == "tagging":
        columns["labels"] = [[-100, *[token % 3 for token in one[1:]]] for one in ids]
    elif kind == "question_answering":
        columns |= {"start_positions": [1] * count, "end_positions": [2] * count}
    elif kind == "language_modelling":
        columns["labels"] = ids
    return datasets.Dataset.from_dict(columns)
