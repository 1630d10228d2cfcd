"""Comparison of this service with other servers of the same model, each in its own environment."""

from benchmarks.peers.environments import FOLDER as ENVIRONMENTS
from benchmarks.peers.measure import measure
from benchmarks.peers.report import markdown, picture, show
from benchmarks.peers.results import Results, failures, raw

__all__ = ["ENVIRONMENTS", "Results", "failures", "markdown", "measure", "picture", "raw", "show"]
