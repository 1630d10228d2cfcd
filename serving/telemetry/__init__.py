"""Metrics, logging, trace context and rate limits."""
