"""The settings of the journal and of the quality metrics."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from serving.settings.groups import Names, SettingsGroup
from serving.settings.parsing import check_slices, parse_secret_journal_url


class JournalSettings(SettingsGroup):
    """The journal of predictions."""

    journal_url: Annotated[SecretStr | None, AfterValidator(parse_secret_journal_url)] = Field(
        None, description="database that records predictions, as a SQLAlchemy URL; default: no journal"
    )
    journal_days: int = Field(30, ge=0, description="days to keep recorded predictions; 0 keeps them forever")
    quality_days: float = Field(
        7.0,
        ge=0,
        le=3650,
        description="compute quality metrics from the outcomes of predictions of the last days; 0 computes "
        "none",
    )
    quality_seconds: float = Field(
        60.0, ge=1, description="interval between two computations of the quality metrics"
    )
    quality_slices: Annotated[Names, AfterValidator(check_slices)] = Field(
        (), description="input columns by whose values quality is computed too, comma separated, at most 5"
    )
    quality_mlflow: bool = Field(
        False, description="log the quality metrics to an MLflow run for each version"
    )
