"""The rollout feature: canary and shadow."""
