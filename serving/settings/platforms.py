"""Environment variables by which managed platforms configure a container.

This module imports only the standard library, because the health check of the image uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.settings.unknown_variables import is_link_to_port

PORT_VARIABLES = ("SERVING_PORT", "AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT")
"""By precedence: the service's own variable, Vertex AI's, SageMaker's, and Cloud Run's and Knative's."""
PREDICT_ROUTE_VARIABLES = ("SERVING_PREDICT_ROUTE", "AIP_PREDICT_ROUTE")
HEALTH_ROUTE_VARIABLES = ("SERVING_HEALTH_ROUTE", "AIP_HEALTH_ROUTE")
DEFAULT_PORT = 8000
SAGEMAKER_PORT = 8080
"""The port of a SageMaker container, which SageMaker sets only where it needs another one."""


def first_set(variables: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """Return the first of the variables that has a value, which Kubernetes has not set; None if none has."""
    for name in variables:
        if (value := environment.get(name)) and not is_link_to_port(name, value):
            return name
    return None


def default_host(environment: Mapping[str, str]) -> str:
    """Return the address to listen on: all addresses on a platform, which connects from outside."""
    return "0.0.0.0" if first_set(PORT_VARIABLES[1:], environment) else "127.0.0.1"  # noqa: S104
