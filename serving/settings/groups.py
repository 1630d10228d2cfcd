"""Groups of settings: small frozen values. A component receives only the groups that concern it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from serving.reference import Reference
from serving.settings.parsing import (
    check_paths_and_ports,
    lowercase,
    parse_list,
    parse_references,
)
from serving.settings.unity_catalog import Catalog, catalog

# NoDecode: pydantic-settings would parse the variables of tuples as JSON.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_list)]
References = Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(parse_references)]


class SettingsGroup(BaseModel):
    """Settings that belong together; frozen."""

    model_config = ConfigDict(frozen=True)


class AccessSettings(SettingsGroup):
    """Access control: API keys, TLS, hosts and origins."""

    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="separate port for admin endpoints (metrics, status, history); default: the main port",
    )
    keys_file: Path | None = Field(
        None, description="file of API keys (see `serving keys`); default: requests need no key"
    )
    keys_stale_seconds: float = Field(
        60.0, ge=1, description="reject all API keys after the key file has been unreadable for this time"
    )
    tls_cert: Path | None = Field(
        None, description="certificate chain in PEM; with SERVING_TLS_KEY it enables TLS"
    )
    tls_key: Path | None = Field(None, description="private key of the certificate, in PEM")
    allowed_hosts: Names = Field(
        (),
        description="accepted host names, comma separated, with wildcards such as *.example.org; default: "
        "any, but on a loopback address only localhost and IP addresses",
    )
    cors_origins: Names = Field(
        (), description="origins from which web pages may call the service, comma separated"
    )


class LimitSettings(SettingsGroup):
    """Limits for requests and connections."""

    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="maximum size of a request body, in bytes")
    max_output_bytes: int = Field(
        64 * 2**20,
        ge=2**20,
        description="maximum output of one model call, in bytes; a call that exceeds it fails",
    )
    read_timeout_seconds: float = Field(
        20.0, gt=0, description="maximum time to receive the head of a request, and then its body"
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="maximum number of open connections; gRPC, if enabled, may use a quarter of them",
    )
    max_unsent_bytes: int = Field(
        128 * 2**20,
        ge=2**20,
        description="maximum total size of large responses that clients have not read yet, in bytes",
    )
    max_rows: int = Field(100_000, ge=1, description="maximum number of rows in one request")
    max_queue_size: int = Field(1024, ge=1, description="maximum number of requests that wait for one model")
    max_queue_seconds: float = Field(
        1.0,
        gt=0,
        description="reject a request at once if it would wait longer than this for a busy model",
    )
    deadline_seconds: float = Field(10.0, gt=0, description="maximum time for one request")
    stream_seconds: float = Field(300.0, gt=0, description="maximum time for one streamed response")
    cached_models: Names = Field((), description="models whose predictions are cached, comma separated")
    cache_entries: int = Field(10_000, ge=1, description="maximum number of cached predictions per version")


class RuntimeSettings(SettingsGroup):
    """Model processes."""

    replicas: int = Field(1, ge=1, le=256, description="model processes per version")
    max_batch_rows: int = Field(
        256, ge=1, description="maximum number of rows in a batch of several requests"
    )
    enforce: bool = Field(False, description="call the model through pyfunc itself and use no fast path")
    preload: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(parse_list)] = Field(
        None,
        examples=["the modules that sklearn models need"],
        description="modules to import once, before any model is loaded, comma separated; such as xgboost",
    )
    max_process_bytes: int | None = Field(
        None,
        ge=2**20,
        description="replace a model process whose memory exceeds this, in bytes; default: no limit",
    )
    environments: bool = Field(
        False, description="run versions that require other packages in virtual environments built by uv"
    )
    model_env: Names = Field(
        (),
        description="additional environment variables for model processes, comma separated, with wildcards "
        "such as LLM_*",
    )
    sandbox: bool = Field(
        False,
        description="confine model processes: no network, no files except their own (Linux, Landlock)",
    )
    sandbox_allow: Annotated[Names, AfterValidator(check_paths_and_ports)] = Field(
        (),
        description="absolute paths that confined model processes may read, and TCP ports that they may "
        "connect to, comma separated",
    )
    load_seconds: float = Field(60.0, gt=0, description="maximum time to load a version")
    drain_seconds: float = Field(
        30.0,
        ge=0,
        description="maximum time to finish open requests when a version is replaced or the service stops",
    )


class RegistrySettings(SettingsGroup):
    """The MLflow registry and the local store of downloaded versions."""

    tracking_uri: str = Field(
        default_factory=lambda: f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}",
        validation_alias="MLFLOW_TRACKING_URI",
        examples=["sqlite:///mlruns/mlflow.db"],
        description="MLflow tracking server or database",
    )
    registry_uri: str | None = Field(
        None,
        validation_alias="MLFLOW_REGISTRY_URI",
        description="MLflow registry, if it is not the tracking server",
    )
    workspace: str | None = Field(
        None,
        validation_alias="MLFLOW_WORKSPACE",
        description="workspace on an MLflow server with workspaces; default: the server's default workspace",
    )
    mlflow_ui_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="address of the MLflow UI for links on the status page; default: the MLflow server",
    )
    store_dir: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("mlflow-serving-front"),
        examples=["the user's cache folder"],
        description="folder for downloaded versions",
    )
    max_model_bytes: int = Field(
        64 * 2**30, ge=2**20, description="maximum size of the artifacts of one version, in bytes"
    )
    download_stall_seconds: float = Field(
        120.0, gt=0, description="abort and retry a download that receives no data for this time"
    )
    download_seconds: float = Field(3600.0, gt=0, description="maximum time to download one version")

    @property
    def catalog(self) -> Catalog | None:
        """Return the Unity Catalog that is the registry; None for any other registry."""
        return catalog(self.tracking_uri, self.registry_uri)


class ArtifactPolicySettings(SettingsGroup):
    """Rules for the artifacts that the service loads."""

    allowed_sources: Names = Field(
        (), description="URIs that contain all artifacts, comma separated; default: any location"
    )
    strict_artifacts: bool = Field(
        False, description="strict mode: reject versions that contain pickles or code"
    )
    trusted_types: Names = Field(
        (), description="additional types that skops may load in strict mode, comma separated"
    )
    packages: Path | None = Field(
        None,
        description="requirements file of exact versions with hashes: the only source of packages for "
        "environments in strict mode, which creates none without it",
    )


class PromotionSettings(SettingsGroup):
    """Detection and verification of promoted versions."""

    poll_seconds: float = Field(1.0, gt=0, description="interval between two polls of the registry")
    probation_seconds: float = Field(
        60.0,
        ge=0,
        description="keep the previous version loaded for this time, to go back to it if the new one fails",
    )
    replay_requests: int = Field(
        100,
        ge=0,
        description="recent live requests, kept in memory, that a version must predict before it goes live",
    )
    allow_breaking: bool = Field(
        False, description="let versions go live whose contract breaks clients of the live version"
    )
    webhook_secret: SecretStr | None = Field(
        None, description="secret with which MLflow signs webhooks; default: webhooks are rejected"
    )
    approvers: Path | None = Field(
        None,
        description="file of approvers (see `serving approvers`): only versions that one of them has "
        "approved go live; default: versions need no approval",
    )
    four_eyes: bool = Field(
        False,
        description="reject an approval by the user who logged the version, and of versions of unknown users",
    )


class MonitoringSettings(SettingsGroup):
    """Drift detection and logging."""

    drift_psi: float = Field(
        0.25,
        ge=0,
        description="report drift of an input or output above this population stability index (PSI); 0 turns "
        "it off",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="log format: json, console, or auto (console on a terminal, otherwise json)"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lowercase)] = Field(
        "info", description="minimum level of log lines: debug, info, warning or error"
    )
    access_log: float = Field(
        0.0, ge=0, le=1, description="share of requests to log; failures (5xx) are always logged"
    )
