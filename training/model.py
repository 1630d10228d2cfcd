"""Log a scikit-learn-like model for serving."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training import digest, labelled_rows, reference_profile
from training.contract import ColumnKeywords, Contract
from training.requirements import pinned

_EXAMPLE_ROWS = 5


@dataclass(frozen=True, slots=True)
class Logged:
    """Ids of a logged model, and its version if it was registered."""

    run_id: str
    model_id: str
    name: str | None
    version: str | None

    @property
    def uri(self) -> str:
        """Return `models:/name/version`, or `models:/m-…` if the model was not registered."""
        return f"models:/{self.name}/{self.version}" if self.version else f"models:/{self.model_id}"


def log_model(
    model: Any,
    table: Any,
    *,
    registered_model_name: str | None = None,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    inputs: Mapping[str, ColumnKeywords] | None = None,
    with_profile: bool = True,
    evaluation: tuple[Any, Any] | None = None,
    **options: Any,
) -> Logged:
    """Log a fitted scikit-learn-like model with the information that a typed endpoint requires.

    A registered version receives a tag with the digest of its artifacts, so that the service rejects
    changed or truncated files.

    The model is logged with `predict_proba` if it is a classifier that has it, otherwise with `predict`.
    With at least 100 rows, the distributions of the rows and of the model's predictions (from at most
    10,000 rows) are logged too; the service detects drift with them. They contain values: deciles of
    numbers, and texts that occur in at least one of 100 rows.

    Integer columns stay integer, and cannot be null when served. An integer column with missing values in
    `table` is logged as `double`, which can be null.

    Args:
        model: The fitted model or pipeline; it must accept a DataFrame.
        table: The DataFrame it was trained on. Its columns, types and missing values determine the
            input signature; its first rows become the input example.
        registered_model_name: The registered model to create a version of; None logs without registering.
        task: `classification` or `regression`; default: scikit-learn's estimator type.
        classes: Names of the classes, in the order of `model.classes_`; default: `model.classes_`.
        inputs: JSON Schema keywords by column: `{"age": {"minimum": 0, "unit": "years"}}`.
        with_profile: Whether to log the distributions.
        evaluation: Labelled rows that were not used for training: a DataFrame and its labels. They are logged
            with the model, and the service evaluates the version on them before it goes live. The DataFrame
            may have further columns, by which rules select rows. The labels of a classifier are those of
            the training, the names of the classes, or, unless the classes are numbers, their numbers
            from 0.
        options: Further arguments of `mlflow.sklearn.log_model`, such as `code_paths` or
            `skops_trusted_types`. By default the requirements are the installed versions of the
            packages that the model consists of.

    Returns:
        The ids of the logged model and of its run, and its version.

    Raises:
        ValueError: MLflow has no type for a column, `inputs` has an unknown column or a keyword that
            does not apply to its type, `task` is unknown, `classes` do not match the model, or
            `evaluation` lacks a column of `table`, has labels of another length, or has a label that is no
            class of the model.
    """
    import mlflow

    table = _with_servable_types(table)
    predict, contract = _describe(model, task, classes, inputs or {})
    signature = _signature(table, getattr(model, predict)(table.head(_EXAMPLE_ROWS)))
    contract.check({column.name: column.type.name for column in signature.inputs})
    if with_profile and len(table) >= reference_profile.MIN_ROWS:
        contract = replace(contract, profile=_profile(model, predict, contract, table))
    if not options.keys() & {"pip_requirements", "extra_pip_requirements", "conda_env"}:
        options["pip_requirements"] = pinned(model)
    with labelled_rows.files(evaluation, list(table.columns), model, contract) as files:
        if files:
            options["extra_files"] = [*(options.get("extra_files") or []), *files]
        info = mlflow.sklearn.log_model(
            model,
            name=options.pop("name", registered_model_name or "model"),
            signature=signature,
            input_example=table.head(_EXAMPLE_ROWS),
            metadata=contract.metadata() | options.pop("metadata", {}),
            pyfunc_predict_fn=predict,
            registered_model_name=registered_model_name,
            **options,
        )
    version = info.registered_model_version
    if registered_model_name and version is not None:
        digest.tag_version(registered_model_name, str(version))
    return Logged(
        info.run_id,
        info.model_id,
        registered_model_name,
        None if version is None else str(version),
    )


def _profile(model: Any, predict: str, contract: Contract, table: Any) -> dict[str, Any]:
    if len(table) > reference_profile.MAX_ROWS:
        table = table.sample(reference_profile.MAX_ROWS, random_state=0)
    classes = contract.classes if contract.task == "classification" else None
    return reference_profile.profile(table, getattr(model, predict)(table), classes)


def _with_servable_types(table: Any) -> Any:
    """Convert integer columns with missing values to float: only a served `double` can be null."""
    from pandas.api.types import is_integer_dtype

    if not all(isinstance(name, str) for name in getattr(table, "columns", [None])):
        raise ValueError("the table must be a DataFrame whose columns have names")
    with_missing = [name for name in table if is_integer_dtype(table[name]) and table[name].hasnans]
    return table.astype(dict.fromkeys(with_missing, "float64"))


def _describe(
    model: Any, task: str | None, classes: Sequence[str] | None, inputs: Mapping[str, ColumnKeywords]
) -> tuple[str, Contract]:
    """Return the function to serve, and the contract without a profile."""
    if task not in (None, "classification", "regression"):
        raise ValueError(f"the task is {task!r}: use classification or regression")
    task = task or _task(model)
    if task != "classification":
        return "predict", Contract(task, None, inputs)
    predict = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    return predict, Contract(task, _class_names(model, classes), inputs)


def _task(model: Any) -> str | None:
    from sklearn.utils import get_tags

    # A mixture model has probabilities too, but no classes.
    if hasattr(model, "predict_proba") and hasattr(model, "classes_"):
        return "classification"
    # An object with scikit-learn's methods only has no tags.
    estimator_type = get_tags(model).estimator_type if hasattr(model, "__sklearn_tags__") else None
    if estimator_type == "classifier" and _identifies_classes(model.classes_):
        return "classification"
    return "regression" if estimator_type == "regressor" else None


def _identifies_classes(ids: Any) -> bool:
    """Return whether a class id identifies its name: as an index into the names, or as the name itself."""
    return list(ids) == list(range(len(ids))) or all(isinstance(identifier, str) for identifier in ids)


def _class_names(model: Any, classes: Sequence[str] | None) -> list[str]:
    ids = getattr(model, "classes_", classes)
    if ids is None:
        raise ValueError("the model has no classes_: pass the names of its classes")
    if any(hasattr(identifier, "__len__") and not isinstance(identifier, str) for identifier in ids):
        raise ValueError("the classifier has several outputs: log one model per output")
    names = [str(name) for name in (ids if classes is None else classes)]
    if len(names) != len(ids):
        raise ValueError(f"{len(names)} class names for a model of {len(ids)} classes")
    return names


def _signature(table: Any, predictions: Any) -> Any:
    from mlflow.models import infer_signature

    with warnings.catch_warnings():
        # MLflow warns about every integer column; the docstring of `log_model` explains the effect.
        warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer", UserWarning)
        signature = infer_signature(table, predictions)
    if signature.inputs.input_names() != list(table.columns):
        dtypes = ", ".join(f"{name} ({dtype})" for name, dtype in table.dtypes.items())
        raise ValueError(f"MLflow has no type for one of these columns: {dtypes}")
    return signature
