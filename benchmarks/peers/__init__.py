"""This service beside other servers of the same model, each in an environment of its own."""

from benchmarks.peers.environments import FOLDER as ENVIRONMENTS
from benchmarks.peers.found import Found, failures, raw
from benchmarks.peers.measure import measure
from benchmarks.peers.telling import markdown, picture, show

__all__ = ["ENVIRONMENTS", "Found", "failures", "markdown", "measure", "picture", "raw", "show"]
