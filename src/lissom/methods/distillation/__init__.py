"""Learning from labels and from the original model."""
