"""Methods that write one linear map as the product of thin ones."""
