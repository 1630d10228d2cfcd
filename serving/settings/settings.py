"""All that can be set, read from the environment and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving import sandbox
from serving.reference import Reference
from serving.settings.groups import (
    AccessSettings,
    ArtifactPolicySettings,
    JournalSettings,
    LimitSettings,
    MonitoringSettings,
    PromotionSettings,
    RegistrySettings,
    RolloutSettings,
    RuntimeSettings,
    ServerSettings,
    unweighted,
    weighted,
)


class Settings(
    ServerSettings,
    AccessSettings,
    LimitSettings,
    RuntimeSettings,
    ArtifactPolicySettings,
    PromotionSettings,
    RolloutSettings,
    MonitoringSettings,
    JournalSettings,
    RegistrySettings,
    BaseSettings,
):
    """All groups at once: whatever asks for one group is handed this."""

    model_config = SettingsConfigDict(
        env_prefix="SERVING_",
        env_ignore_empty=True,  # as MLflow reads its own
        frozen=True,
        populate_by_name=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    @model_validator(mode="after")
    def _models_agree(self) -> Self:
        if self.grpc_port is not None and not find_spec("grpc_tools"):
            raise ValueError("SERVING_GRPC_PORT: gRPC is not installed: pip install '.[grpc]'")
        if self.sandbox and (reason := sandbox.unsupported([*filter(str.isdecimal, self.sandbox_allow)])):
            raise ValueError(f"SERVING_SANDBOX: model processes can't be confined: {reason}")
        if mistake := check_weights(self.models, self.canary_steps):
            raise ValueError(mistake)
        if unknown := {each.name for each in self.shadow} - {each.name for each in self.models}:
            raise ValueError(f"SERVING_SHADOW: {', '.join(sorted(unknown))}: no such model in SERVING_MODELS")
        if twice := {*map(str, self.models)} & {*map(str, self.shadow)}:
            raise ValueError(f"SERVING_SHADOW: {', '.join(sorted(twice))}: it is in SERVING_MODELS too")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SERVING_TLS_CERT and SERVING_TLS_KEY: set both, or none")
        if unknown := set(self.cached_models) - {
            reference.name for reference in (*self.models, *self.on_demand)
        }:
            raise ValueError(
                f"SERVING_CACHED_MODELS: {', '.join(sorted(unknown))}: no such model in SERVING_MODELS"
            )
        if twice := {*map(str, self.models)} & {*map(str, self.on_demand)}:
            raise ValueError(f"SERVING_ON_DEMAND: {', '.join(sorted(twice))}: it is in SERVING_MODELS too")
        return self

    models: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(weighted)] = Field(
        (Reference.parse("models:/iris/Production"),),
        min_length=1,
        description="model references, comma separated; the first is the default; `=95` is a weight",
    )
    on_demand: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(unweighted)] = Field(
        (), description="more references, of models that are loaded when they are asked for"
    )
    idle_seconds: float = Field(
        300.0, gt=0, description="time without a request after which a model on demand is unloaded"
    )
    max_loaded: int = Field(4, ge=1, description="models on demand that are loaded at the same time")


_GROUPS = (
    ServerSettings,
    AccessSettings,
    RuntimeSettings,
    LimitSettings,
    PromotionSettings,
    RolloutSettings,
    ArtifactPolicySettings,
    MonitoringSettings,
    JournalSettings,
    RegistrySettings,
)
OPTIONS = (*Settings.__annotations__, *(name for group in _GROUPS for name in group.model_fields))
"""All settings, in the order in which they are told."""


def check_weights(models: Sequence[Reference], steps: Sequence[float]) -> str | None:
    """What is wrong with the weights of references; None if nothing is."""
    for name in {each.name for each in models if each.weight is not None}:
        weights = [each.weight for each in models if each.name == name]
        if None in weights or len(weights) < 2:
            return f"SERVING_MODELS: {name}: give each of several references to it a weight, or none"
        if not any(weights):
            return f"SERVING_MODELS: {name}: one of its references needs a weight above 0"
        if steps and len(weights) != 2:
            return f"SERVING_CANARY_STEPS: {name}: give two of its references a weight"
    if any(not 0 < step <= 100 for step in steps) or sorted(set(steps)) != [*steps]:
        return "SERVING_CANARY_STEPS: write rising percentages, such as 5,25,50"
    return None


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    of_mlflow = name in ("tracking_uri", "registry_uri")
    return f"{'MLFLOW' if of_mlflow else 'SERVING'}_{name.upper()}"


def format_default(name: str) -> str:
    """A setting's default as a person would write it."""
    field = Settings.model_fields[name]
    if field.examples:
        return str(field.examples[0])
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default)) or "none"
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "none" if field.default is None else str(field.default)


def format_errors(error: ValidationError) -> list[str]:
    """One readable line for each wrong setting."""
    return [
        "".join(f"{env_name(str(part).lower().removeprefix('mlflow_'))}: " for part in fault["loc"][:1])
        + fault["msg"].removeprefix("Value error, ")
        for fault in error.errors(include_url=False)
    ]
