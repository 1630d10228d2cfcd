"""The settings of the addresses of the front, and of its place behind proxies and on managed platforms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field

from serving.settings import platforms
from serving.settings.groups import Names, SettingsGroup
from serving.settings.parsing import check_peers, check_route, parse_root_path, without_brackets


class ServerSettings(SettingsGroup):
    """Addresses of the front."""

    host: Annotated[str, AfterValidator(without_brackets)] = Field(
        default_factory=lambda: platforms.default_host(os.environ),
        examples=["127.0.0.1"],
        description="address to listen on; :: accepts IPv6 and IPv4; default: 0.0.0.0 if a platform's "
        "variable sets the port",
    )
    port: int = Field(
        platforms.DEFAULT_PORT,
        ge=0,
        le=65535,
        validation_alias=AliasChoices(*platforms.PORT_VARIABLES),
        description="port to listen on; 0 picks a free port; default: AIP_HTTP_PORT, SAGEMAKER_BIND_TO_PORT "
        "or PORT, if set",
    )
    predict_route: Annotated[str | None, AfterValidator(check_route)] = Field(
        None,
        validation_alias=AliasChoices(*platforms.PREDICT_ROUTE_VARIABLES),
        description="additional path for predictions of the default model in Vertex AI's format; it replaces "
        "an endpoint at that path; default: AIP_PREDICT_ROUTE, if set",
    )
    health_route: Annotated[str | None, AfterValidator(check_route)] = Field(
        None,
        validation_alias=AliasChoices(*platforms.HEALTH_ROUTE_VARIABLES),
        description="additional path that returns 200 when every required model is live, otherwise 503; an "
        "endpoint at that path stays; default: AIP_HEALTH_ROUTE, if set",
    )
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port for gRPC (requires the extra `grpc`); default: no gRPC"
    )
    root_path: Annotated[str, AfterValidator(parse_root_path)] = Field(
        "",
        examples=["none"],
        description="path prefix below which a reverse proxy publishes the service, such as /models-eu; the "
        "proxy may remove it or not",
    )
    forwarded_allow_ips: Annotated[Names, AfterValidator(check_peers)] = Field(
        (),
        description="IP addresses and networks of reverse proxies whose X-Forwarded-For, -Proto and -Prefix "
        "are valid, comma separated; * for every peer",
    )
    uds: Path | None = Field(
        None, description="Unix socket to listen on in place of SERVING_HOST and SERVING_PORT"
    )
    uds_mode: str = Field(
        "666", pattern="^[0-7]{3,4}$", description="access mode of the Unix socket, in octal digits"
    )
    fd: int | None = Field(
        None,
        ge=0,
        description="descriptor of an open socket to listen on in place of SERVING_HOST and SERVING_PORT",
    )
