"""Save scripted models and promote them in a registry as a user would."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from tests.support.contracts import columns

SCRIPTED_MODEL = Path(__file__).with_name("scripted_model.py")
INPUTS = "x: double, act: string?"
EXAMPLE = pd.DataFrame({"x": [1.0, 2.0]})
NewRegistry = Callable[[Path], str]
"""The fixture `new_registry`: create an empty registry below a folder, and return its URI."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of MLflow, for example on stages, type hints and integer columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_scripted_model(
    folder: Path,
    *,
    inputs: str = INPUTS,
    outputs: Schema | None = None,
    params: list[ParamSpec] | None = None,
    example: Any = EXAMPLE,
    metadata: dict[str, Any] | None = None,
    **part: Any,
) -> Path:
    """Save a scripted model with the config `part` in a new folder below `folder`; return the folder."""
    saved = folder / f"actor-{len([*folder.glob('actor-*')])}"
    schema: Any = ParamSchema(params) if params else None
    signature = ModelSignature(
        Schema(columns(inputs)),
        outputs or Schema([ColSpec("double")]),
        schema,
    )
    with quiet():
        mlflow.pyfunc.save_model(
            saved,
            python_model=SCRIPTED_MODEL,
            signature=signature,
            input_example=example,
            metadata=metadata,
            pip_requirements=[],
            model_config=part,
        )
    return saved


class Registry:
    """A registry in SQLite, with its artifacts in a folder beside it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folder = Path(uri.removeprefix("sqlite:///")).parent
        self.client = MlflowClient(uri, uri)

    def register(self, name: str, folder: Path) -> str:
        """Register the model in `folder` as the next version; return its number."""
        with quiet():
            if not self.client.search_registered_models(f"name='{name}'"):
                self.client.create_registered_model(name)
            return str(self.client.create_model_version(name, str(folder)).version)

    def add(self, name: str, **part: Any) -> str:
        """Register an actor as the next version of a model; return its number."""
        return self.register(name, save_scripted_model(self.folder, **part))

    def promote(self, name: str, version: str, stage: str = "Production", archive: bool = True) -> None:
        """Move a version to a stage; archive its predecessor there unless `archive` is false."""
        with quiet():
            self.client.transition_model_version_stage(
                name, version, stage, archive and stage == "Production"
            )

    def alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at this version."""
        self.client.set_registered_model_alias(name, alias, version)

    def lose(self, folder: Path) -> None:
        """Delete artifacts, as a lifecycle rule of a bucket would."""
        shutil.rmtree(folder)
