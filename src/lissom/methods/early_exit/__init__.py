"""Methods that answer some texts before the last layer."""
