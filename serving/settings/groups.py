"""The groups of settings: small, frozen, each handed to whom it concerns."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
)
from pydantic_settings import NoDecode

from serving.errors import InvalidReference
from serving.reference import Reference


def references(value: Any, parse: Callable[[str], Reference]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tuple(parse(uri) for uri in map(str.strip, value.split(",")) if uri)
    except InvalidReference as error:
        raise ValueError(str(error)) from None


def unweighted(value: Any) -> Any:
    return references(value, Reference.parse)


def weighted(value: Any) -> Any:
    return references(value, Reference.parse_weighted)


def _numbers(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _names(value: Any) -> Any:
    return (
        tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
    )


def _paths_and_ports(value: tuple[str, ...]) -> tuple[str, ...]:
    for each in value:
        if not (each.startswith("/") or (each.isascii() and each.isdecimal() and 0 < int(each) < 65536)):
            raise ValueError(f"{each!r} is neither an absolute path nor a TCP port")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _database(given: SecretStr | None) -> SecretStr | None:
    return given and SecretStr(journal_url(given.get_secret_value()))


def journal_url(text: str) -> str:
    """The URL of a database in which predictions can be recorded, with the driver that is used.

    Raises:
        ValueError: it is none; the message has no password.
    """
    from sqlalchemy.engine import make_url  # heavy, and mostly not needed
    from sqlalchemy.exc import ArgumentError

    forms = "write sqlite:///file.db, or postgresql://user:password@host/database"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"it is no database URL: {forms}") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise ValueError(f"a database in memory is lost with its process: {forms}")
        if not (folder := Path(str(url.database)).parent).is_dir():
            raise ValueError(f"there is no folder {folder} for the database")
    elif url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError(f"{url.drivername} is not spoken here: {forms}")
    elif not find_spec("psycopg"):
        raise ValueError("PostgreSQL's driver is not installed: pip install '.[postgres]'")
    else:
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


class SettingsGroup(BaseModel):
    model_config = ConfigDict(frozen=True)


class ServerSettings(SettingsGroup):
    """Where the front listens."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port for gRPC, which needs the extra `grpc`; none without"
    )


class AccessSettings(SettingsGroup):
    """Who may ask."""

    admin_port: int | None = Field(
        None, ge=0, le=65535, description="port on which alone what operators ask is; the same if none"
    )
    keys_file: Path | None = Field(None, description="file of API keys, see serving keys; none are asked for")
    keys_stale_seconds: float = Field(
        60.0, ge=1, description="time after which no key is valid if the file of keys can't be read"
    )
    tls_cert: Path | None = Field(None, description="certificate chain in PEM, to speak TLS")
    tls_key: Path | None = Field(None, description="its private key in PEM")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (),
        description="names of this service in URLs, *.example.org too, comma separated; any if none, but on "
        "loopback localhost and addresses alone",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="origins of browsers' pages that may ask, comma separated"
    )


class LimitSettings(SettingsGroup):
    """What one caller may ask for."""

    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="largest request body, in bytes")
    max_output_bytes: int = Field(
        64 * 2**20, ge=2**20, description="largest output of one model call, in bytes; more fails the call"
    )
    read_timeout_seconds: float = Field(
        20.0, gt=0, description="time that a request's head, or its body, may take to arrive"
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="maximum number of open connections; gRPC, where it is on, gets a quarter of them",
    )
    max_unsent_bytes: int = Field(
        128 * 2**20,
        ge=2**20,
        description="maximum size of all large responses together that callers have not read yet, in bytes",
    )
    max_rows: int = Field(100_000, ge=1, description="most rows in one request")
    max_queue_size: int = Field(1024, ge=1, description="most requests that wait for one model")
    max_queue_seconds: float = Field(
        1.0, gt=0, description="time a request may have to wait for a busy model, or is refused at once"
    )
    deadline_seconds: float = Field(10.0, gt=0, description="time a request may take, in seconds")
    stream_seconds: float = Field(300.0, gt=0, description="time a streamed answer may take, in seconds")
    cached_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="models whose answers are kept and given again, comma separated"
    )
    cache_entries: int = Field(10_000, ge=1, description="answers that are kept for each version")


class RuntimeSettings(SettingsGroup):
    """How model versions are run."""

    replicas: int = Field(1, ge=1, le=256, description="model processes per version")
    max_batch_rows: int = Field(256, ge=1, description="most rows of several requests in one batch")
    enforce: bool = Field(
        False, description="have pyfunc enforce the signature once more, after the contract has"
    )
    preload: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_names)] = Field(
        None,
        examples=["what sklearn models need"],
        description="modules that are imported once, ahead of all models: xgboost, comma separated",
    )
    max_process_bytes: int | None = Field(
        None, ge=2**20, description="memory at which a model process is replaced, once another is up; none"
    )
    environments: bool = Field(
        False, description="run versions that require other packages in environments that uv makes for them"
    )
    model_env: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (),
        description="environment variables that model processes get beside the common ones, LLM_* too, "
        "comma separated",
    )
    sandbox: bool = Field(
        False, description="confine model processes: no network, no files but their own (Linux, Landlock)"
    )
    sandbox_allow: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_names), AfterValidator(_paths_and_ports)
    ] = Field(
        (),
        description="absolute paths that confined models may read, and TCP ports that they may connect to, "
        "comma separated",
    )
    load_seconds: float = Field(60.0, gt=0, description="time a version may take to load")
    drain_seconds: float = Field(30.0, ge=0, description="time an old version or a stop may drain")


class RegistrySettings(SettingsGroup):
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
    max_model_bytes: int = Field(
        64 * 2**30, ge=2**20, description="largest size of the artifacts of one version, in bytes"
    )
    download_stall_seconds: float = Field(
        30.0, gt=0, description="time without a new byte after which a download is given up and tried again"
    )
    download_seconds: float = Field(
        3600.0, gt=0, description="time that the download of one version may take"
    )


class ArtifactPolicySettings(SettingsGroup):
    """Which versions are let in."""

    allowed_sources: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="URIs below which artifacts may be, comma separated; anywhere if none"
    )
    strict_artifacts: bool = Field(False, description="let in no version that brings pickles or code along")
    trusted_types: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="types that skops may load in strict mode beside its own, comma separated"
    )
    packages: Path | None = Field(
        None,
        description="requirements file of exact versions with hashes, the only source of packages for "
        "environments in strict mode; without it strict mode makes none",
    )


class PromotionSettings(SettingsGroup):
    """How promotions are followed."""

    poll_seconds: float = Field(1.0, gt=0, description="time between looks at the registry")
    probation_seconds: float = Field(
        60.0, ge=0, description="time the old version stays warm, to go back to if the new one fails"
    )
    replay_requests: int = Field(
        100, ge=0, description="last live requests, kept in memory, that a new version has to answer"
    )
    allow_breaking: bool = Field(
        False, description="let versions go live whose contract breaks clients of the live one"
    )
    webhook_secret: SecretStr | None = Field(
        None, description="secret with which MLflow signs its webhooks; without it none are heard"
    )


class RolloutSettings(SettingsGroup):
    """How a version is tried on live requests before it is promoted."""

    shadow: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(unweighted)] = Field(
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
    canary_max_error_rate: float = Field(
        0.01, ge=0, lt=1, description="share of failed requests, beyond the first's, at which it gets none"
    )
    canary_max_latency_ratio: float = Field(
        2.0, gt=1, description="ratio of its 95th percentile to the first's at which it gets none"
    )

    @property
    def sticky(self) -> bytes | None:
        """The sticky header's name, as requests have it."""
        return self.sticky_header.lower().encode() if self.sticky_header else None


class MonitoringSettings(SettingsGroup):
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


class JournalSettings(SettingsGroup):
    """Where predictions are recorded."""

    journal_url: Annotated[SecretStr | None, AfterValidator(_database)] = Field(
        None, description="database in which predictions are recorded, as SQLAlchemy has it; none"
    )
    journal_days: int = Field(
        30, ge=0, description="days for which recorded predictions are kept; 0 keeps them for ever"
    )
