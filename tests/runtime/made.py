"""A tokenizer and an exported folder that are made in milliseconds and can be computed by hand."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["good", "bad", "film", "a", "very", "un", "##known", "the", "end", "is", "near", "and", "far"]
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}


def tokenizer() -> PreTrainedTokenizerFast:
    """Word pieces of a dozen words; `unknown` is two of them."""
    made = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def table(classes: int = 3) -> np.ndarray:
    """What each token adds to the logits: (tokens, classes)."""
    return np.random.default_rng(0).normal(size=(len(VOCABULARY), classes)).astype(np.float32)


def exported(folder: Path, weights: np.ndarray, *, file: str = "model.onnx", inputs: tuple[str, ...] = ()) -> Path:
    """A folder with a graph whose logits are the sums of the rows of `weights` over the real tokens."""
    names = ("input_ids", "attention_mask", *inputs)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "one"], ["row"]),
        helper.make_node("MatMul", ["row", "states"], ["total"]),
        helper.make_node("Squeeze", ["total", "one"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "table"), numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "onnx" / file)
    tokenizer().save_pretrained(folder)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(number): f"class {number}" for number in range(weights.shape[1])},
        "max_position_embeddings": 64,
        "model_type": "bert",
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
