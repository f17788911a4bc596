"""The config of the BiLSTM text classifier."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

MODEL_TYPE = "lissom-bilstm"


class BiLstmConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a `BiLstmForSequenceClassification`.

    embedding_size: width of the token table.  units: of the LSTM in each direction.  hidden_size: of the layer before
    the classifier.  separator_id: the token between the two texts of a pair, which are then read one by one and
    compared; None reads every input as one text.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        embedding_size: int = 300,
        units: int = 150,
        hidden_size: int = 200,
        separator_id: int | None = None,
        pad_token_id: int | None = 0,
        eos_token_id: int | None = None,
        initializer_range: float = 0.1,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.units = units
        self.hidden_size = hidden_size
        self.separator_id = separator_id
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.initializer_range = initializer_range
        super().__init__(**others)


AutoConfig.register(MODEL_TYPE, BiLstmConfig, exist_ok=True)
