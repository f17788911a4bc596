"""The one tuning engine, on transformers.Trainer: what a model learns from, in `objectives`; the loop, in `engine`."""
