"""The installed packages that a model needs in order to be loaded again.

MLflow infers them from every module that is imported while the model is loaded, which lists test
runners and terminal libraries beside scikit-learn. Here they are read off the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from typing import Any

# pyfunc, its tables and the file format; NumPy and SciPy decide what scikit-learn computes.
_ALWAYS = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")


def pinned(model: Any) -> list[str]:
    """`name==version` of every distribution that the model and its parts come from, sorted."""
    owners = packages_distributions()
    names = {owner for module in _modules(model) for owner in owners.get(module, ())}
    return [f"{name}=={version(name)}" for name in sorted({*_ALWAYS, *names})]


def _modules(model: Any) -> Iterator[str]:
    """The top-level modules of a model, its steps, their estimators, and functions they hold."""
    parts = model.get_params(deep=True).values() if hasattr(model, "get_params") else ()
    for part in (model, *parts):
        # A function knows its module, and an instance that of its class.
        yield str(getattr(part, "__module__", None) or type(part).__module__).partition(".")[0]
