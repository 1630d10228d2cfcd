"""The drift feature: compares live inputs and predictions with the version's training data."""
