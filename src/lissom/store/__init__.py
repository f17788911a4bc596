"""Models on disk: `save`, `load`, `load_tokenizer`.

A lissom folder is an ordinary model folder (`config.json` with the final config, `model.safetensors`, tokenizer files)
with two more files: `README.md`, the model card, and `lissom.json`, written last: format number, base, transformers
class, edits, recipe, versions, and the digest of every other file. Loading is transformers' own `from_pretrained` with
our quantizer, which replays the edits on the empty model before the weights are filled in.
"""

from lissom.store.loading import load, load_tokenizer
from lissom.store.saving import save

__all__ = ["load", "load_tokenizer", "save"]
