"""The tables of the journal, as the migrations create them."""

from __future__ import annotations

import math
from datetime import datetime
from uuid import UUID as Identity

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import UUID

metadata = MetaData()
_ID = String(36).with_variant(UUID(as_uuid=False), "postgresql")
_MOMENT = DateTime(timezone=True)

versions = Table(
    "versions",
    metadata,
    # A hash of the version's identity, so that all fronts compute the same id without a query.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String, nullable=False),
    Column("version", String),
    Column("model_id", String),
    Column("run_id", String),
    Column("source", String, nullable=False),
    Column("task", String),
    Column("outputs", Text, nullable=False),
    # Sums over the feedback, changed with it in one transaction.
    Column("feedback_at", DateTime(timezone=True)),
    Column("feedback", Integer, nullable=False, server_default="0"),
    Column("classed", Integer, nullable=False, server_default="0"),
    Column("correct", Integer, nullable=False, server_default="0"),
    Column("measured", Integer, nullable=False, server_default="0"),
    # Exact, as fractions: a float could not give back a large error that is corrected.
    Column("absolute_errors", Text, nullable=False, server_default="0"),
    Column("squared_errors", Text, nullable=False, server_default="0"),
)
"""The model versions with predictions, the schema of their outputs, and the sums of their feedback."""

predictions = Table(
    "predictions",
    metadata,
    # A UUIDv7, which begins with the time: ids are in the order of time.
    Column("id", _ID, primary_key=True),
    Column("at", _MOMENT, nullable=False),
    Column("version", BigInteger, ForeignKey("versions.id"), nullable=False),
    Column("protocol", String, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("params", Text),
    Column("outputs", Text, nullable=False),
    Column("latency", Float, nullable=False),
    Column("request_id", String, nullable=False),
)
"""Successful requests; `inputs` and `outputs` are JSON arrays with one element per row, times are UTC."""

feedback = Table(
    "feedback",
    metadata,
    Column("prediction", _ID, ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True),
    Column("row", Integer, primary_key=True, autoincrement=False),
    Column("at", _MOMENT, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("correct", Boolean),
    Column("error", Float),
)
"""True outcomes as JSON; `correct` for classes, `error` (predicted minus true) for numbers."""


def first_id(moment: datetime) -> str:
    """Return the smallest id of a prediction at this time or later; ids begin in 1970."""
    return str(Identity(int=max(0, math.ceil(moment.timestamp() * 1000)) << 80))
