"""Logs a scikit-learn-like model so that it can be served."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training import digest, profile
from training.contract import Contract, Words
from training.requirements import pinned

_EXAMPLE_ROWS = 5


@dataclass(frozen=True, slots=True)
class Logged:
    """What became of a model: where MLflow has it, and its version where it was registered."""

    run_id: str
    model_id: str
    name: str | None
    version: str | None

    @property
    def uri(self) -> str:
        """`models:/name/version`, or `models:/m-…` where it was not registered."""
        return f"models:/{self.name}/{self.version}" if self.version else f"models:/{self.model_id}"


def log_model(
    model: Any,
    table: Any,
    *,
    registered_model_name: str | None = None,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    inputs: Mapping[str, Words] | None = None,
    with_profile: bool = True,
    **options: Any,
) -> Logged:
    """Log a fitted scikit-learn-like model with all that a typed endpoint is made from.

    A registered version is tagged with the digest of its artifacts, so that a serving front refuses them
    where they have been altered or cut off.

    A classifier is logged with `predict_proba` where it has that, anything else with `predict`.
    Where there are 100 rows or more, how they and the model's answers are distributed is logged with
    it (of at most 10,000 of them), by which a serving front tells drift. It holds values: deciles of
    numbers, and texts that one row in a hundred has.

    Whole-number columns stay whole numbers, which can't be null when served; one in which `table`
    has missing values is logged as `double`, which can.

    Args:
        model: The fitted model or pipeline; it must take a DataFrame.
        table: The DataFrame it was trained on. Its columns, types and missing values become the
            input signature, its first rows the input example.
        registered_model_name: The registered model to make a new version of; none: log only.
        task: `classification` or `regression`; default: what scikit-learn takes the model for.
        classes: Names of the classes, in the order of `model.classes_`, which are the default.
        inputs: JSON Schema's words on columns: `{"age": {"minimum": 0, "unit": "years"}}`.
        with_profile: Whether to log the distributions.
        options: Anything else that `mlflow.sklearn.log_model` takes, such as `code_paths` or
            `skops_trusted_types`. By default the requirements are the installed versions of what
            the model is made of.

    Returns:
        The ids of the logged model and of its run, and its version.

    Raises:
        ValueError: a column can't be typed, `inputs` names no column or says of one what means
            nothing for its type, `task` is neither of the two, or `classes` do not fit the model.
    """
    import mlflow

    table = _servable(table)
    predict, contract = _describe(model, task, classes, inputs or {})
    signature = _signature(table, getattr(model, predict)(table.head(_EXAMPLE_ROWS)))
    contract.check({column.name: column.type.name for column in signature.inputs})
    if with_profile and len(table) >= profile.LEAST_ROWS:
        contract = replace(contract, profile=_profile(model, predict, contract, table))
    if not options.keys() & {"pip_requirements", "extra_pip_requirements", "conda_env"}:
        options["pip_requirements"] = pinned(model)
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
        digest.record(registered_model_name, str(version))
    return Logged(
        info.run_id,
        info.model_id,
        registered_model_name,
        None if version is None else str(version),
    )


def _profile(model: Any, predict: str, contract: Contract, table: Any) -> dict[str, Any]:
    if len(table) > profile.MOST_ROWS:
        table = table.sample(profile.MOST_ROWS, random_state=0)
    classes = contract.classes if contract.task == "classification" else None
    return profile.profile(table, getattr(model, predict)(table), classes)


def _servable(table: Any) -> Any:
    """Whole numbers with gaps as floats: a served `long` can't be null, a `double` can."""
    from pandas.api.types import is_integer_dtype

    if not all(isinstance(name, str) for name in getattr(table, "columns", [None])):
        raise ValueError("the table must be a DataFrame whose columns have names")
    gaps = [name for name in table if is_integer_dtype(table[name]) and table[name].hasnans]
    return table.astype(dict.fromkeys(gaps, "float64"))


def _describe(
    model: Any, task: str | None, classes: Sequence[str] | None, inputs: Mapping[str, Words]
) -> tuple[str, Contract]:
    """The function to serve, and what the signature can't say of it."""
    if task not in (None, "classification", "regression"):
        raise ValueError(f"the task is {task!r}: use classification or regression")
    task = task or _task(model)
    if task != "classification":
        return "predict", Contract(task, None, inputs)
    predict = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    return predict, Contract(task, _names(model, classes), inputs)


def _task(model: Any) -> str | None:
    from sklearn.utils import get_tags

    # A mixture has probabilities, too, but no classes that they would be of.
    if hasattr(model, "predict_proba") and hasattr(model, "classes_"):
        return "classification"
    # An object that is only like scikit-learn's models has no tags.
    kind = get_tags(model).estimator_type if hasattr(model, "__sklearn_tags__") else None
    if kind == "classifier" and _counted_or_named(model.classes_):
        return "classification"
    return "regression" if kind == "regressor" else None


def _counted_or_named(ids: Any) -> bool:
    """Whether a bare class can be read back: as an index into the names, or as a name."""
    return list(ids) == list(range(len(ids))) or all(isinstance(each, str) for each in ids)


def _names(model: Any, classes: Sequence[str] | None) -> list[str]:
    ids = getattr(model, "classes_", classes)
    if ids is None:
        raise ValueError("the model has no classes_: pass the names of its classes")
    if any(hasattr(each, "__len__") and not isinstance(each, str) for each in ids):
        raise ValueError("the classifier has several outputs: log one model for each of them")
    names = [str(name) for name in (ids if classes is None else classes)]
    if len(names) != len(ids):
        raise ValueError(f"{len(names)} class names for a model of {len(ids)} classes")
    return names


def _signature(table: Any, answer: Any) -> Any:
    from mlflow.models import infer_signature

    with warnings.catch_warnings():
        # MLflow says so of every whole-number column; `log_model` says what comes of it.
        warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer", UserWarning)
        signature = infer_signature(table, answer)
    if signature.inputs.input_names() != list(table.columns):
        dtypes = ", ".join(f"{name} ({dtype})" for name, dtype in table.dtypes.items())
        raise ValueError(f"MLflow has no type for one of these columns: {dtypes}")
    return signature
