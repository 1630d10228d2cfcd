"""A serving front for the MLflow model registry."""

from importlib import metadata

try:
    __version__ = metadata.version("mlflow-serving-front")
except metadata.PackageNotFoundError:
    # The Python of a model's own environment reads these files without an installation.
    __version__ = "unknown"
