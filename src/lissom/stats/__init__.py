"""What methods look at before they decide: importance of parts, measured on texts or read off the weights."""
