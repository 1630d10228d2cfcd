"""Helpers of the tests: services, registries, models and clients."""
