"""The contract of a model version: its signature and its metadata, parsed from the MLmodel file."""
