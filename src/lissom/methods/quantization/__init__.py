"""Methods that store and compute with few bits."""
