"""Time series models, whose output does not have one row per request row."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

from tests.support.model_zoo.entries import Entry, records, table
from tests.support.model_zoo.sklearn_models import MEASURES

SALES = 20 + np.arange(60) * 0.5 + 3 * np.sin(np.arange(60) / 2) + np.random.default_rng(0).normal(size=60)


def _ols(folder: Path) -> None:
    import statsmodels.api as sm

    model = sm.OLS(MEASURES.sum(axis=1) + np.array([0.1, 0, 0.2, 0, 0.1, 0.3]), MEASURES).fit()
    mlflow.statsmodels.save_model(model, folder, input_example=MEASURES, pip_requirements=[])


def _arima(folder: Path) -> None:
    from statsmodels.tsa.arima.model import ARIMA

    model = ARIMA(SALES, order=(1, 1, 1)).fit()
    example = pd.DataFrame({"start": [60], "end": [64]})
    mlflow.statsmodels.save_model(model, folder, input_example=example, pip_requirements=[])


def _arima_without_example(folder: Path) -> None:
    from statsmodels.tsa.arima.model import ARIMA

    model = ARIMA(SALES, order=(2, 0, 0)).fit()
    signature = infer_signature(pd.DataFrame({"start": [60], "end": [64]}), model.predict(60, 64))
    mlflow.statsmodels.save_model(model, folder, signature=signature, pip_requirements=[])


def _auto_arima(folder: Path) -> None:
    import pmdarima

    model = pmdarima.ARIMA(order=(1, 1, 0)).fit(SALES)
    example = pd.DataFrame({"n_periods": [3]})
    mlflow.pmdarima.save_model(model, folder, input_example=example, pip_requirements=[])


SPANS = (
    records({"start": 60, "end": 64}),
    records({"start": 60, "end": 60}),
    records({"start": 55, "end": 62}),
)

ENTRIES = {
    "statsmodels_ols": Entry(_ols, (table(MEASURES), table(MEASURES[:1]))),
    "statsmodels_arima": Entry(_arima, SPANS, whole=True),
    "statsmodels_arima_without_example": Entry(_arima_without_example, SPANS, whole=None),
    "pmdarima": Entry(
        _auto_arima,
        (records({"n_periods": 3}), records({"n_periods": 6}), records({"n_periods": 1})),
        whole=True,
    ),
}
