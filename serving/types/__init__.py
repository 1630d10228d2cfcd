"""The types of columns and tensors: validation of values against a signature."""
