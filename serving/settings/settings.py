"""All settings, read from the environment and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from serving import sandbox
from serving.errors import InvalidReference
from serving.reference import Reference, ReferenceKind
from serving.settings.addresses import ServerSettings
from serving.settings.evaluation import EvaluationSettings
from serving.settings.groups import (
    AccessSettings,
    ArtifactPolicySettings,
    LimitSettings,
    MonitoringSettings,
    PromotionSettings,
    References,
    RegistrySettings,
    RuntimeSettings,
)
from serving.settings.journal import JournalSettings
from serving.settings.parsing import parse_weighted_references
from serving.settings.platforms import first_set
from serving.settings.rollout import OutcomeSettings, RolloutSettings
from serving.settings.unity_catalog import Catalog, check_reference
from serving.settings.unknown_variables import is_link_to_port
from serving.text import install_command


class Settings(
    ServerSettings,
    AccessSettings,
    LimitSettings,
    RuntimeSettings,
    ArtifactPolicySettings,
    PromotionSettings,
    RolloutSettings,
    EvaluationSettings,
    MonitoringSettings,
    JournalSettings,
    RegistrySettings,
    BaseSettings,
):
    """All groups in one value, which can be passed wherever one group is expected."""

    model_config = SettingsConfigDict(
        env_prefix="SERVING_",
        env_ignore_empty=True,  # like MLflow for its own variables
        frozen=True,
        populate_by_name=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    models: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(parse_weighted_references)] = Field(
        (Reference.parse("models:/iris/Production"),),
        min_length=1,
        description="model references, comma separated; the first is the default model; `=95` sets a traffic "
        "weight",
    )
    on_demand: References = Field((), description="additional references, loaded on their first request")
    idle_seconds: float = Field(
        300.0, gt=0, description="unload an on-demand model after this time without a request"
    )
    max_loaded: int = Field(4, ge=1, description="maximum number of on-demand models loaded at the same time")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return flags and environment variables as the sources, without what Kubernetes has set itself."""
        assert isinstance(env_settings, EnvSettingsSource)
        variables = env_settings.env_vars.items()
        env_settings.env_vars = {name: value for name, value in variables if not is_link_to_port(name, value)}
        return init_settings, env_settings

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.grpc_port is not None and not find_spec("grpc"):
            raise ValueError(f"SERVING_GRPC_PORT: gRPC is not installed: {install_command('grpc')}")
        if self.uds is not None and self.fd is not None:
            raise ValueError("SERVING_UDS and SERVING_FD: set only one of them")
        if self.sandbox and (reason := sandbox.unsupported([*filter(str.isdecimal, self.sandbox_allow)])):
            raise ValueError(f"SERVING_SANDBOX: cannot confine model processes: {reason}")
        if mistake := check_weights(self.models, self.canary_steps) or check_canary(self):
            raise ValueError(mistake)
        for variable in ("models", "shadow", "on_demand"):
            _check_supported(env_name(variable), getattr(self, variable), self.catalog)
        served = {reference.name for reference in self.models}
        loadable = served | {reference.name for reference in self.on_demand}
        _check_known("SERVING_SHADOW", {reference.name for reference in self.shadow} - served)
        _check_known("SERVING_CACHED_MODELS", {*self.cached_models} - loadable)
        for variable, references in (("SERVING_SHADOW", self.shadow), ("SERVING_ON_DEMAND", self.on_demand)):
            if duplicates := {*map(str, self.models)} & {*map(str, references)}:
                raise ValueError(f"{variable}: {', '.join(sorted(duplicates))}: also in SERVING_MODELS")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SERVING_TLS_CERT and SERVING_TLS_KEY: set both or neither")
        return self


def _check_supported(variable: str, references: Sequence[Reference], catalog: Catalog | None) -> None:
    for reference in references:
        try:
            check_reference(reference, catalog)
        except InvalidReference as error:
            raise ValueError(f"{variable}: {error}") from None


def _check_known(variable: str, unknown: set[str]) -> None:
    if unknown:
        raise ValueError(f"{variable}: {', '.join(sorted(unknown))}: no such model in SERVING_MODELS")


_GROUPS = (
    ServerSettings,
    AccessSettings,
    RuntimeSettings,
    LimitSettings,
    PromotionSettings,
    OutcomeSettings,
    RolloutSettings,
    EvaluationSettings,
    ArtifactPolicySettings,
    MonitoringSettings,
    JournalSettings,
    RegistrySettings,
)
OPTIONS = tuple(
    dict.fromkeys([*Settings.__annotations__, *(name for group in _GROUPS for name in group.model_fields)])
)
"""The names of all settings, in the order of the help and the documentation."""


def check_weights(models: Sequence[Reference], steps: Sequence[float]) -> str | None:
    """Return the mistake in the weights of references or in the canary steps; None if there is none."""
    for name in {reference.name for reference in models if reference.weight is not None}:
        weights = [reference.weight for reference in models if reference.name == name]
        if None in weights or len(weights) < 2:
            return (
                f"SERVING_MODELS: {name}: set a weight for all of its references, at least two, or for none"
            )
        if not any(weights):
            return f"SERVING_MODELS: {name}: one of its references needs a weight above 0"
        if steps and len(weights) != 2:
            return f"SERVING_CANARY_STEPS: {name}: set a weight for exactly two of its references"
    if any(not 0 < step <= 100 for step in steps) or sorted(set(steps)) != [*steps]:
        return "SERVING_CANARY_STEPS: write rising percentages, such as 5,25,50"
    return None


def check_canary(settings: Settings) -> str | None:
    """Return the mistake in the settings of canaries on outcomes; None if there is none."""
    weighted = [reference for reference in settings.models if reference.weight is not None]
    primaries = {reference.name: reference for reference in reversed(weighted)}.values()
    movable = (ReferenceKind.ALIAS, ReferenceKind.STAGE)
    if settings.canary_promote and (fixed := [str(each) for each in primaries if each.kind not in movable]):
        return (
            f"SERVING_CANARY_PROMOTE: {', '.join(fixed)}: only a stage or an alias can name another version"
        )
    if settings.canary_min_outcomes and not settings.journal_url:
        return "SERVING_CANARY_MIN_OUTCOMES: without SERVING_JOURNAL_URL no outcomes arrive"
    return None


def env_name(name: str) -> str:
    """Return the environment variable of a setting."""
    prefix = "MLFLOW" if name in ("tracking_uri", "registry_uri", "workspace") else "SERVING"
    return f"{prefix}_{name.upper()}"


def panel(name: str) -> str:
    """Return the title of the group of a setting."""
    for group in _GROUPS:
        if name in group.model_fields:
            return (group.__doc__ or "").rstrip(".")
    return "Models"


def format_default(name: str) -> str:
    """Return the default of a setting as the help shows it."""
    field = Settings.model_fields[name]
    if field.examples:
        return str(field.examples[0])
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default)) or "none"
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "none" if field.default is None else str(field.default)


_MESSAGES = {
    "too_short": "must name at least 1 model, such as models:/iris/Production",
    "string_pattern_mismatch": "must be an http or https URL without credentials, query and fragment",
}
"""Messages for the mistakes that pydantic describes in its own terms."""
_MAX_SHOWN_LENGTH = 60


def format_errors(error: ValidationError) -> list[str]:
    """Return one readable line for each invalid setting."""
    return [_format_error(mistake) for mistake in error.errors(include_url=False)]


def _format_error(mistake: ErrorDetails) -> str:
    message = _MESSAGES.get(mistake["type"], mistake["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should "):  # secrets are texts, which have other messages
        value = repr(mistake["input"])
        shown = value if len(value) <= _MAX_SHOWN_LENGTH else f"{value[:_MAX_SHOWN_LENGTH]}…"
        reason = message.removeprefix("Input should ").partition(", unable")[0]
        message = f"must {reason}, not {shown}"
    if not mistake["loc"]:
        return message
    return f"{_variable(str(mistake['loc'][0]))}: {message}"


def _variable(place: str) -> str:
    """Return the variable that an error concerns: a platform's own, if the value comes from it.

    Args:
        place: the name of a flag, or the variable of a setting of MLflow or of a platform.
    """
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else ()
        if place in (name, alias):
            return env_name(name)
        if place in choices:
            return first_set(choices, os.environ) or place
    return env_name(place)
