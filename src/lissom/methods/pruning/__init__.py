"""Methods that remove parts for good: layers, attention heads, intermediate neurons."""
