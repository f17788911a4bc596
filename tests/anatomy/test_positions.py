import pytest
import torch

from lissom.anatomy import positions
from tests import tiny


@pytest.mark.parametrize(
    ("variant", "readable"),
    [("bert", 64), ("roberta", 62), ("xlm-roberta", 62), ("camembert", 62), ("mpnet", 62), ("opt", 64), ("t5", None)],
)
def test_a_text_of_so_many_tokens_is_read_and_no_longer_one(variant: str, readable: int | None) -> None:
    model = tiny.model(variant, pad_token_id=1)
    assert positions(model) == readable
    if readable is not None:
        model(input_ids=torch.full((1, readable), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, readable + 1), 5))
