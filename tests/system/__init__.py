"""Tests of whole systems: several fronts, browsers, databases, Ray, packages and scripts."""
