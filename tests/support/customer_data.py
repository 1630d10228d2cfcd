"""Generate random customers of a shop, and a model of their spending that depends only on `size`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline


def customers(rows: int, seed: int) -> pd.DataFrame:
    """Return random customers; one in twenty has no size."""
    chance = np.random.default_rng(seed)
    size = chance.lognormal(0, 0.5, rows)
    size[chance.random(rows) < 0.05] = np.nan
    return pd.DataFrame(
        {
            "size": size,
            "weight": chance.normal(70, 10, rows),
            "visits": chance.poisson(1.5, rows).clip(max=5),
            "colour": chance.choice(["red", "blue", "green"], rows, p=[0.5, 0.3, 0.2]),
            "regular": chance.random(rows) < 0.7,
        }
    )


def payer(table: pd.DataFrame) -> Any:
    """Return a model fitted to the table."""
    columns = make_column_transformer((SimpleImputer(), ["size"]), remainder="drop")
    return make_pipeline(columns, LinearRegression()).fit(table, table["size"].fillna(1.0) * 10)


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as clients send them in JSON."""
    return [
        {str(name): None if value != value else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]
