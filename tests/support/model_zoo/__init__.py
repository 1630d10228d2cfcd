"""Real models of many kinds, logged as users log them, with their requests.

`entries` defines an entry, `ENTRY_MODULES` names the modules that list them: adding a kind of model means
adding one entry. `reference` saves the models and records what MLflow itself returns, `protocols` sends the
same requests to the service through each protocol, and `comparison` compares the two. The tests are in
`tests/service/test_model_zoo.py`.
"""

from __future__ import annotations

ENTRY_MODULES = ("sklearn_models", "other_libraries", "forecasters", "python_models", "type_hints", "agents")
"""Modules whose models run in the test environment."""
