"""Loaded model versions: selection, slots, verification, replay and probation."""
