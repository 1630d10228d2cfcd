"""The quality of a version by the feedback on its predictions."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, Field


class QualityState(BaseModel):
    """The quality of a version by the feedback on it; metrics that do not apply to its outputs are null."""

    feedback: int = Field(description="number of outcomes")
    accuracy: float | None
    mean_absolute_error: float | None
    root_mean_squared_error: float | None


class RecentQuality(BaseModel):
    """The quality of a version on its predictions of the last days that have outcomes."""

    days: float = Field(description="the age of the oldest predictions, in days")
    rows: int = Field(description="number of outcomes")
    is_limited: bool = Field(description="whether older outcomes are left out, for their number or size")
    metrics: dict[str, float] = Field(description="metrics of all rows, by name")
    classes: dict[str, dict[str, float]] = Field({}, description="metrics by class")
    slices: dict[str, dict[str, float]] = Field({}, description="metrics by slice, such as region=north")


class QualityFields(BaseModel):
    """The fields of a model's state."""

    quality: QualityState | None = Field(None, description="quality by the feedback; null without feedback")
    recent_quality: RecentQuality | None = Field(
        None,
        exclude_if=lambda recent: recent is None,
        description="quality on the predictions of the last days; absent without feedback on them",
    )


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of a version by all feedback; metrics that do not apply to its outputs are None."""

    model: str
    version: str | None
    model_id: str | None
    run_id: str | None
    source: str
    """The location of the artifacts: a deleted version may have had the same name and number."""
    at: int
    """The time of the last feedback, in milliseconds since 1970."""
    feedback: int
    accuracy: float | None
    mean_absolute_error: float | None
    root_mean_squared_error: float | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Return the values that identify the version in the journal."""
        return self.model, self.label, self.source

    @property
    def label(self) -> str:
        """Return the version as in metrics and headers."""
        return self.version or self.model_id or ""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics that apply, by name."""
        metrics = {
            "accuracy": self.accuracy,
            "mean_absolute_error": self.mean_absolute_error,
            "root_mean_squared_error": self.root_mean_squared_error,
        }
        return {name: value for name, value in metrics.items() if value is not None}


@dataclass(frozen=True, slots=True)
class QualityWindow:
    """The quality of a version on the predictions of the last days.

    `values` has (metric, class, slice, value); class and slice are empty for all rows.
    """

    model: str
    version: str | None
    model_id: str | None
    run_id: str | None
    source: str
    at: int
    """The time of the last feedback, in milliseconds since 1970."""
    days: float
    is_limited: bool
    values: list[tuple[str, str, str, float]]

    @property
    def key(self) -> tuple[str, str, str]:
        """Return the values that identify the version in the journal."""
        return self.model, self.label, self.source

    @property
    def label(self) -> str:
        """Return the version as in metrics and headers."""
        return self.version or self.model_id or ""

    def state(self, *, public: bool) -> RecentQuality:
        """Return the quality as `/ready` reports it; the public part has no classes and no slices."""
        overall: dict[str, float] = {}
        classes: dict[str, dict[str, float]] = {}
        slices: dict[str, dict[str, float]] = {}
        for metric, label, where, value in self.values:
            target = slices.setdefault(where, {}) if where else overall
            target = classes.setdefault(label, {}) if label else target
            target[metric] = value
        rows = int(overall.pop("rows"))
        by_part = {} if public else {"classes": classes, "slices": slices}
        return RecentQuality(
            days=self.days, rows=rows, is_limited=self.is_limited, metrics=overall, **by_part
        )
