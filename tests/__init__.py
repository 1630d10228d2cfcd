"""Tests in three tiers, and what they share in `support`."""
