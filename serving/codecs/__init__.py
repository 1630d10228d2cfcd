"""Conversion between JSON, Arrow and the values of models."""
