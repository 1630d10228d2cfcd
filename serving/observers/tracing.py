"""Turn on tracing where OpenTelemetry's standard environment variables ask for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from serving.errors import TracingConfigError
from serving.feature_interface import Feature
from serving.text import install_command

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_SUPPORTED_PROTOCOL = "http/protobuf"


def features(variables: Mapping[str, str] = os.environ) -> list[Feature]:
    """Return the feature that traces requests; none if the environment does not turn on tracing.

    Raises:
        TracingConfigError: The packages are missing, or the exporter or the protocol is not supported.
    """
    if (endpoint := endpoint_variable(variables)) is None:
        return []
    try:
        from serving.observers.spans import TraceRecorder  # its dependencies are an optional extra
    except ImportError:
        raise TracingConfigError(
            f"{endpoint}: tracing is not installed: {install_command('tracing')}"
        ) from None
    recorder = TraceRecorder()
    return [Feature(hooks=[recorder], aclose=recorder.aclose)]


def endpoint_variable(variables: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the variable with the endpoint for traces; None if tracing is off.

    Raises:
        TracingConfigError: The exporter or the protocol is not supported.
    """
    endpoint = next((name for name in _ENDPOINTS if variables.get(name)), None)
    exporter = variables.get(_EXPORTER) or "otlp"
    if endpoint is None or exporter == "none" or variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((name for name in _PROTOCOLS if variables.get(name)), None)
    if protocol and variables[protocol] != _SUPPORTED_PROTOCOL:
        raise TracingConfigError(
            f"{protocol}: {variables[protocol]} is not supported; set {_SUPPORTED_PROTOCOL}"
        )
    if exporter != "otlp":
        raise TracingConfigError(f"{_EXPORTER}: {exporter} is not supported; set otlp")
    return endpoint
