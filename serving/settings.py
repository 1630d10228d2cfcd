"""What can be set: small frozen groups, read from the environment and the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.errors import InvalidReference
from serving.reference import Reference


def _references(value: Any, parse: Callable[[str], Reference]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(parse(uri) for uri in map(str.strip, value.split(",")) if uri)
    except InvalidReference as error:
        raise ValueError(str(error)) from None


def _unweighted(value: Any) -> Any:
    return _references(value, Reference.parse)


def _weighted(value: Any) -> Any:
    return _references(value, Reference.parse_weighted)


def _numbers(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _names(value: Any) -> Any:
    return (
        tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
    )


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True)


class Listen(_Group):
    """Where the front listens."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port for gRPC, which needs the extra `grpc`; none without"
    )


class Access(_Group):
    """Who may ask."""

    admin_port: int | None = Field(
        None, ge=0, le=65535, description="port on which alone what operators ask is; the same if none"
    )
    keys_file: Path | None = Field(None, description="file of API keys, see serving keys; none are asked for")
    tls_cert: Path | None = Field(None, description="certificate chain in PEM, to speak TLS")
    tls_key: Path | None = Field(None, description="its private key in PEM")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="names of this service in URLs, *.example.org too, comma separated; any if none"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="origins of browsers' pages that may ask, comma separated"
    )


class Limits(_Group):
    """What one caller may ask for."""

    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="largest request body, in bytes")
    receive_seconds: float = Field(
        20.0, gt=0, description="time that a request's head, or its body, may take to arrive"
    )
    max_connections: int = Field(10_000, ge=1, description="most connections that are open")
    max_rows: int = Field(100_000, ge=1, description="most rows in one request")
    max_waiting: int = Field(1024, ge=1, description="most requests that wait for one model")
    wait_seconds: float = Field(
        1.0, gt=0, description="time a request may have to wait for a busy model, or is refused at once"
    )
    deadline_seconds: float = Field(10.0, gt=0, description="time a request may take, in seconds")
    stream_seconds: float = Field(300.0, gt=0, description="time a streamed answer may take, in seconds")
    cache: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="models whose answers are kept and given again, comma separated"
    )
    cache_entries: int = Field(10_000, ge=1, description="answers that are kept for each version")


class Runtime(_Group):
    """How model versions are run."""

    replicas: int = Field(1, ge=1, le=256, description="model processes per version")
    max_batch_rows: int = Field(256, ge=1, description="most rows of several requests in one batch")
    enforce: bool = Field(
        False, description="have pyfunc enforce the signature once more, after the contract has"
    )
    max_process_bytes: int | None = Field(
        None, ge=2**20, description="memory at which a model process is replaced, once another is up; none"
    )
    environments: bool = Field(
        False, description="run versions that require other packages in environments that uv makes for them"
    )
    load_seconds: float = Field(60.0, gt=0, description="time a version may take to load")
    drain_seconds: float = Field(30.0, ge=0, description="time an old version or a stop may drain")


class Registry(_Group):
    """Where model versions come from."""

    tracking_uri: str = Field(
        default_factory=lambda: f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}",
        validation_alias="MLFLOW_TRACKING_URI",
        examples=["sqlite:///mlruns/mlflow.db"],
        description="MLflow tracking server or database",
    )
    registry_uri: str | None = Field(
        None,
        validation_alias="MLFLOW_REGISTRY_URI",
        description="MLflow registry, where it is not the tracking one",
    )
    store_dir: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("mlflow-serving-front"),
        examples=["the user's cache folder"],
        description="where downloaded versions are kept",
    )


class Trust(_Group):
    """Which versions are let in."""

    allowed_sources: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="URIs below which artifacts may be, comma separated; anywhere if none"
    )
    strict: bool = Field(False, description="let in no version that brings pickles or code along")
    trusted_types: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="types that skops may load in strict mode beside its own, comma separated"
    )


class Following(_Group):
    """How promotions are followed."""

    poll_seconds: float = Field(1.0, gt=0, description="time between looks at the registry")
    probation_seconds: float = Field(
        60.0, ge=0, description="time the old version stays warm, to go back to if the new one fails"
    )
    replayed: int = Field(
        100, ge=0, description="last live requests, kept in memory, that a new version has to answer"
    )
    allow_breaking: bool = Field(
        False, description="let versions go live whose contract breaks clients of the live one"
    )
    webhook_secret: SecretStr | None = Field(
        None, description="secret with which MLflow signs its webhooks; without it none are heard"
    )


class Trying(_Group):
    """How a version is tried on live requests before it is promoted."""

    shadow: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(_unweighted)] = Field(
        (), description="references that are asked what the live ones of their models were asked, to compare"
    )
    sticky_header: str | None = Field(
        None,
        description="header whose value decides which of several weighted references answers; chance if none",
    )
    canary_steps: Annotated[tuple[float, ...], NoDecode, BeforeValidator(_numbers)] = Field(
        (),
        description="shares in percent through which the second of two weighted references rises by itself",
    )
    canary_seconds: float = Field(300.0, gt=0, description="time that each of these steps takes at least")
    canary_max_failing: float = Field(
        0.01, ge=0, lt=1, description="share of failed requests, beyond the first's, at which it gets none"
    )
    canary_max_latency: float = Field(
        2.0, gt=1, description="ratio of its 95th percentile to the first's at which it gets none"
    )

    @property
    def sticky(self) -> bytes | None:
        """The sticky header's name, as requests have it."""
        return self.sticky_header.lower().encode() if self.sticky_header else None


class Monitoring(_Group):
    """What is watched and told."""

    drift_psi: float = Field(
        0.25, ge=0, description="PSI above which an input or output is told to have drifted; 0 watches none"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="how: json, console, or auto, which is json unless on a terminal"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", description="the least that is logged: debug, info, warning, error"
    )
    access_log: float = Field(
        0.0, ge=0, le=1, description="share of requests that are logged; failures (5xx) always are"
    )


class Settings(Listen, Access, Limits, Runtime, Trust, Following, Trying, Monitoring, Registry, BaseSettings):
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
        if mistake := _unshared(self.models, self.canary_steps):
            raise ValueError(mistake)
        if unknown := {each.name for each in self.shadow} - {each.name for each in self.models}:
            raise ValueError(f"SERVING_SHADOW: {', '.join(sorted(unknown))}: no such model in SERVING_MODELS")
        if twice := {*map(str, self.models)} & {*map(str, self.shadow)}:
            raise ValueError(f"SERVING_SHADOW: {', '.join(sorted(twice))}: it is in SERVING_MODELS too")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SERVING_TLS_CERT and SERVING_TLS_KEY: set both, or none")
        if unknown := set(self.cache) - {reference.name for reference in (*self.models, *self.on_demand)}:
            raise ValueError(f"SERVING_CACHE: {', '.join(sorted(unknown))}: no such model in SERVING_MODELS")
        if twice := {*map(str, self.models)} & {*map(str, self.on_demand)}:
            raise ValueError(f"SERVING_ON_DEMAND: {', '.join(sorted(twice))}: it is in SERVING_MODELS too")
        return self

    models: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(_weighted)] = Field(
        (Reference.parse("models:/iris/Production"),),
        min_length=1,
        description="model references, comma separated; the first is the default; `=95` is a weight",
    )
    on_demand: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(_unweighted)] = Field(
        (), description="more references, of models that are loaded when they are asked for"
    )
    idle_seconds: float = Field(
        300.0, gt=0, description="time without a request after which a model on demand is unloaded"
    )
    most_loaded: int = Field(4, ge=1, description="models on demand that are loaded at the same time")


_GROUPS = (Listen, Access, Runtime, Limits, Following, Trying, Trust, Monitoring, Registry)
OPTIONS = (*Settings.__annotations__, *(name for group in _GROUPS for name in group.model_fields))
"""All settings, in the order in which they are told."""


def _unshared(models: Sequence[Reference], steps: Sequence[float]) -> str | None:
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


def variable(name: str) -> str:
    """The environment variable of a setting."""
    of_mlflow = name in ("tracking_uri", "registry_uri")
    return f"{'MLFLOW' if of_mlflow else 'SERVING'}_{name.upper()}"


def shown_default(name: str) -> str:
    """A setting's default as a person would write it."""
    field = Settings.model_fields[name]
    if field.examples:
        return str(field.examples[0])
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default)) or "none"
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "none" if field.default is None else str(field.default)


def mistakes(error: ValidationError) -> list[str]:
    """One readable line for each wrong setting."""
    return [
        "".join(f"{variable(str(part).lower().removeprefix('mlflow_'))}: " for part in fault["loc"][:1])
        + fault["msg"].removeprefix("Value error, ")
        for fault in error.errors(include_url=False)
    ]
