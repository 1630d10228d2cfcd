"""Installed packages that are required to load a model again.

MLflow infers them from all modules that are imported while it loads the model, which includes test runners
and terminal libraries. This module reads them from the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from typing import Any

# pyfunc, its tables and the file format; the results of scikit-learn depend on NumPy and SciPy.
_ALWAYS = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")


def pinned(model: Any) -> list[str]:
    """Return `name==version` for every distribution that the model and its parts come from, sorted."""
    owners = packages_distributions()
    names = {owner for module in _modules(model) for owner in owners.get(module, ())}
    return [f"{name}=={version(name)}" for name in sorted({*_ALWAYS, *names})]


def _modules(model: Any) -> Iterator[str]:
    """Yield the top-level modules of a model, its steps, their estimators and functions."""
    parts = model.get_params(deep=True).values() if hasattr(model, "get_params") else ()
    for part in (model, *parts):
        # A function has a module, and an instance has the module of its class.
        yield str(getattr(part, "__module__", None) or type(part).__module__).partition(".")[0]
