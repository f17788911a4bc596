"""Where the parts of a model are."""

from lissom.anatomy.dissect import dissect
from lissom.anatomy.families import FAMILIES
from lissom.anatomy.parts import Anatomy, Attention, Block, Ffn, Stack
from lissom.anatomy.positions import positions
from lissom.anatomy.residual import Residual, residual
from lissom.anatomy.sentence import is_bare, note_sentence, sentence_of
from lissom.anatomy.slot import Slot, dense_weight, is_linear, is_transposed, keep_together, shrink, stored_maps
from lissom.anatomy.token_table import token_table
from lissom.anatomy.vocabulary import Vocabulary, vocabulary

__all__ = [
    "FAMILIES",
    "Anatomy",
    "Attention",
    "Block",
    "Ffn",
    "Residual",
    "Slot",
    "Stack",
    "Vocabulary",
    "dense_weight",
    "dissect",
    "is_bare",
    "is_linear",
    "is_transposed",
    "keep_together",
    "note_sentence",
    "positions",
    "residual",
    "sentence_of",
    "shrink",
    "stored_maps",
    "token_table",
    "vocabulary",
]
