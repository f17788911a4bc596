"""Methods that let several layers use the same tensors."""
