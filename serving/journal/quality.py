"""How right a version is, as the journal's process tells the front."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, Field


class QualityState(BaseModel):
    """How right a version is, by the feedback on it; null what does not apply to its answers."""

    feedback: int = Field(description="outcomes that came")
    accuracy: float | None
    mean_absolute_error: float | None
    root_mean_squared_error: float | None


class QualityFields(BaseModel):
    """The field of a model's state."""

    quality: QualityState | None = Field(None, description="by the feedback that came; null without")


@dataclass(frozen=True, slots=True)
class Quality:
    """How right a version was, by all feedback that came; what does not apply to its answers is None."""

    model: str
    version: str | None
    model_id: str | None
    run_id: str | None
    source: str
    """Where the version's artifacts are, which tells it from others that had its name and number."""
    at: int
    """When feedback last came, in milliseconds since 1970."""
    feedback: int
    accuracy: float | None
    mean_absolute_error: float | None
    root_mean_squared_error: float | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the version apart from all others that the journal has."""
        return self.model, self.label, self.source

    @property
    def label(self) -> str:
        """The version, as metrics and headers tell it."""
        return self.version or self.model_id or ""

    @property
    def metrics(self) -> dict[str, float]:
        """By name, without those that do not apply."""
        found = {
            "accuracy": self.accuracy,
            "mean_absolute_error": self.mean_absolute_error,
            "root_mean_squared_error": self.root_mean_squared_error,
        }
        return {name: value for name, value in found.items() if value is not None}
