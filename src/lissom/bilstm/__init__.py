"""The BiLSTM text classifier: a model class of lissom's own, registered with transformers by `lissom.bridge`."""
