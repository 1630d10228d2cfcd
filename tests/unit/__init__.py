"""Tests without a service or a model process: the inner loop of a change."""
