"""Models of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

from tests.support.model_zoo.entries import Entry, Request, Save, records, table

MEASURES = pd.DataFrame({"width": [1.0, 2.5, 3.0, 4.25, 5.0, 6.5], "height": [2.0, 1.0, 0.5, 3.5, 4.0, 2.5]})
ARRAY = MEASURES.to_numpy()
HOLES = MEASURES.where(MEASURES < 4)
REVIEWS = pd.DataFrame(
    {
        "text": ["good and cheap", "bad", "very good", "too dear, bad", "good", "bad and late"],
        "shop": ["north", "south", "north", "west", "south", "west"],
        "stars": [5.0, 1.0, 4.0, np.nan, 5.0, 2.0],
        "bought": pd.to_datetime(
            ["2024-01-05", "2024-02-17", "2024-03-01", "2024-05-30", "2024-07-01", "2024-12-24"]
        ),
    }
)
TREES = ["sklearn.tree._tree.Tree"]
TOPICS = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])


def _with_example(fit: Any, example: Any, **options: Any) -> Save:
    """Save as the documentation shows it: an input example, from which MLflow infers the signature."""

    def save(folder: Path) -> None:
        mlflow.sklearn.save_model(fit(), folder, input_example=example, pip_requirements=[], **options)

    return save


def _with_signature(fit: Any, inputs: Any, outputs: Any = None, example: Any = None, **options: Any) -> Save:
    """Save with a signature inferred from these values, or from what `outputs` returns for the model."""

    def save(folder: Path) -> None:
        model = fit()
        values = outputs(model) if callable(outputs) else outputs
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(inputs, values),
            input_example=example,
            pip_requirements=[],
            **options,
        )

    return save


def month(dates: pd.DataFrame) -> pd.DataFrame:
    """Return the month and the weekday of each date."""
    return pd.concat(
        [dates[name].dt.month for name in dates] + [dates[name].dt.dayofweek for name in dates], axis=1
    )


def _reviews() -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

    columns = ColumnTransformer(
        [
            ("text", TfidfVectorizer(), "text"),
            ("shop", OneHotEncoder(handle_unknown="ignore"), ["shop"]),
            ("stars", SimpleImputer(), ["stars"]),
            ("bought", FunctionTransformer(month), ["bought"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(REVIEWS, ["yes", "no", "yes", "no", "yes", "no"])


def _missing() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=1).fit(HOLES, range(len(MEASURES)))


def _categories() -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.tree import DecisionTreeClassifier

    encoded = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["shop"]), remainder="passthrough"
    )
    return make_pipeline(encoded, DecisionTreeClassifier(random_state=0)).fit(
        _shops(), ["small", "large", "small", "large", "large", "small"]
    )


def _shops() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "shop": REVIEWS["shop"],
            "staff": [3, 9, 2, 12, 7, 4],
            "is_open": [True, True, False, True, False, True],
        }
    )


def _two_targets() -> pd.DataFrame:
    return pd.DataFrame({"price": MEASURES.sum(axis=1), "weight": MEASURES.prod(axis=1)})


def _linear(inputs: Any, target: Any) -> Any:
    from sklearn.linear_model import LinearRegression

    return lambda: LinearRegression().fit(inputs, target)


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=5, random_state=0).fit(MEASURES, [0, 1, 2, 0, 1, 2])


def _multi_label() -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.multioutput import MultiOutputClassifier

    return MultiOutputClassifier(RandomForestClassifier(n_estimators=3, random_state=0)).fit(MEASURES, TOPICS)


def _clusters() -> Any:
    from sklearn.cluster import KMeans

    return KMeans(2, n_init=1, random_state=0).fit(MEASURES)


def _scaler() -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge()).fit(ARRAY.astype(np.float32), ARRAY.sum(axis=1))


class TwoColumns:
    """An estimator that returns a DataFrame of two columns."""

    def fit(self, inputs: Any, target: Any = None) -> TwoColumns:
        """Learn nothing."""
        return self

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Return the area, and a word for it."""
        area = inputs["width"] * inputs["height"]
        return pd.DataFrame({"area": area, "size": ["large" if value > 5 else "small" for value in area]})


NUMBERED = pd.DataFrame(ARRAY)
FEW = (table(MEASURES), table(MEASURES[:1]), table(MEASURES[2:4][::-1].reset_index(drop=True)))
WHOLE_NUMBERS = records({"width": 2, "height": 1}, {"width": 3, "height": 4})
TENSOR = tuple(
    Request(tuple(map(tuple, rows.tolist())), named=False, datatype="FP64")
    for rows in (ARRAY, ARRAY[:1], ARRAY[3:])
)
NUMBERED_ROWS = (table(NUMBERED), table(NUMBERED[:1]))

ENTRIES = {
    "sklearn_text_pipeline": Entry(
        _with_example(_reviews, REVIEWS, serialization_format="cloudpickle"),
        (table(REVIEWS), table(REVIEWS[2:3]), table(REVIEWS[3:])),
    ),
    "sklearn_text_pipeline_probabilities": Entry(
        _with_signature(
            _reviews,
            REVIEWS,
            lambda model: model.predict_proba(REVIEWS),
            REVIEWS[:2],
            serialization_format="cloudpickle",
            pyfunc_predict_fn="predict_proba",
            metadata={"serving": {"task": "classification", "classes": ["no", "yes"]}},
        ),
        (table(REVIEWS), table(REVIEWS[4:])),
        classes=("no", "yes"),
    ),
    "sklearn_categories": Entry(
        _with_example(_categories, _shops(), serialization_format="cloudpickle"),
        (table(_shops()), table(_shops()[:2])),
    ),
    "sklearn_missing_values": Entry(
        _with_example(_missing, HOLES, serialization_format="cloudpickle"),
        (
            table(MEASURES.where(MEASURES < 3)),
            table(MEASURES[:1]),
            records({"width": None, "height": 2.0}, {"width": 1.5, "height": None}),
        ),
    ),
    "sklearn_regressor": Entry(
        _with_example(_linear(MEASURES, ARRAY.sum(axis=1)), MEASURES), (*FEW, WHOLE_NUMBERS)
    ),
    "sklearn_classifier": Entry(
        _with_signature(
            _forest, MEASURES, lambda model: model.predict(MEASURES), MEASURES[:2], skops_trusted_types=TREES
        ),
        FEW,
    ),
    "sklearn_labels_of_a_classifier": Entry(
        _with_signature(
            _forest,
            MEASURES,
            lambda model: model.predict(MEASURES),
            MEASURES[:2],
            skops_trusted_types=TREES,
            metadata={"serving": {"task": "classification", "classes": ["a", "b", "c"]}},
        ),
        FEW,
        classes=("a", "b", "c"),
    ),
    "sklearn_multi_output": Entry(_with_example(_linear(MEASURES, _two_targets()), MEASURES), FEW),
    "sklearn_multi_label": Entry(_with_example(_multi_label, MEASURES, skops_trusted_types=TREES), FEW),
    "sklearn_clusters": Entry(_with_example(_clusters, MEASURES), FEW),
    "sklearn_tensor": Entry(_with_example(_linear(ARRAY, ARRAY.sum(axis=1)), ARRAY), TENSOR),
    "sklearn_tensor_two_outputs": Entry(
        _with_signature(_linear(ARRAY, ARRAY @ [[1, 2], [3, 4]]), ARRAY, lambda model: model.predict(ARRAY)),
        TENSOR,
    ),
    "sklearn_tensor_of_floats": Entry(
        _with_example(_scaler, ARRAY.astype(np.float32)),
        tuple(Request(each.rows, named=False, datatype="FP32") for each in TENSOR),
    ),
    "sklearn_numbered_columns": Entry(
        _with_signature(_linear(ARRAY, ARRAY.sum(axis=1)), NUMBERED, ARRAY.sum(axis=1)), NUMBERED_ROWS
    ),
    "sklearn_numbered_columns_with_example": Entry(
        _with_example(_linear(ARRAY, ARRAY.sum(axis=1)), NUMBERED), NUMBERED_ROWS
    ),
    "sklearn_integer_labels": Entry(
        _with_signature(
            _linear(MEASURES, [1, 2, 3, 5, 5, 9]),
            MEASURES,
            pd.Series([1, 2, 3, 5, 5, 9], name="y"),
            MEASURES[:2],
        ),
        FEW,
    ),
    "sklearn_integer_labels_array": Entry(
        _with_signature(
            _linear(MEASURES, [1, 2, 3, 5, 5, 9]), MEASURES, np.array([1, 2, 3, 5, 5, 9]), MEASURES[:2]
        ),
        FEW,
    ),
    "sklearn_two_targets": Entry(
        _with_signature(_linear(MEASURES, _two_targets()), MEASURES, _two_targets(), MEASURES[:2]),
        FEW,
        outputs=("price", "weight"),
    ),
    "sklearn_no_outputs": Entry(
        _with_signature(TwoColumns, MEASURES, None, MEASURES[:2], serialization_format="cloudpickle"), FEW
    ),
    "sklearn_no_outputs_array": Entry(
        _with_signature(_linear(MEASURES, _two_targets()), MEASURES, None), FEW
    ),
}
