"""Whether requests are traced: OpenTelemetry's standard variables say so."""

from __future__ import annotations

import os
from collections.abc import Mapping

from serving.errors import TracingConfigError
from serving.hooks import RequestHook

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_SPOKEN = "http/protobuf"


def observers(variables: Mapping[str, str] = os.environ) -> list[RequestHook]:
    """Who traces requests, where the environment asks for that.

    Raises:
        Untraceable: it can't be done, or not in the way that is asked for.
    """
    if (endpoint := endpoint_variable(variables)) is None:
        return []
    try:
        from serving.observers.spans import TraceRecorder  # what it needs is an extra
    except ImportError:
        raise TracingConfigError(f"{endpoint}: tracing is not installed: pip install '.[tracing]'") from None
    return [TraceRecorder()]


def endpoint_variable(variables: Mapping[str, str] = os.environ) -> str | None:
    """The variable that names where traces are to be sent; None where requests are not traced.

    Raises:
        Untraceable: they are to be sent in a way that is not known here.
    """
    endpoint = next((name for name in _ENDPOINTS if variables.get(name)), None)
    exporter = variables.get(_EXPORTER) or "otlp"
    if endpoint is None or exporter == "none" or variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((name for name in _PROTOCOLS if variables.get(name)), None)
    if protocol and variables[protocol] != _SPOKEN:
        raise TracingConfigError(f"{protocol}: {variables[protocol]} is not spoken here, but {_SPOKEN} is")
    if exporter != "otlp":
        raise TracingConfigError(f"{_EXPORTER}: {exporter} is not known here, but otlp is")
    return endpoint
