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


class QualityFields(BaseModel):
    """The field of a model's state."""

    quality: QualityState | None = Field(None, description="quality by the feedback; null without feedback")


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
