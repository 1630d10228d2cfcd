"""Reproducible benchmarks of the service: `python -m benchmarks --help`."""
