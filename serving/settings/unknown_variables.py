"""Environment variables that only look like settings: misspelt names, and the service links of Kubernetes.

Kubernetes sets variables such as `SERVING_SERVICE_HOST` and `SERVING_PORT=tcp://10.0.0.1:80` in the pods of a
namespace that contains a Service named `serving`, unless `enableServiceLinks` is false.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

PREFIX = "SERVING_"
_LINK_NAME = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def is_link_to_port(name: str, value: str | None) -> bool:
    """Return whether Kubernetes has set this variable, which has the form of a port's setting."""
    return name.upper().endswith("_PORT") and _LINK_VALUE.fullmatch(value or "") is not None


def suspicious_variables(environment: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """Yield a readable line for each variable that has no effect although it looks like a setting.

    Args:
        environment: all environment variables.
        settings: the variables of all settings.
    """
    for name, value in sorted(environment.items()):
        variable = name.upper()  # variables of settings are not case-sensitive
        if not variable.startswith(PREFIX):
            continue
        if is_link_to_port(variable, value):
            if variable in settings:
                service = variable.removesuffix("_PORT").replace("_", "-").lower()
                yield (
                    f"{name}: ignored {value}, which Kubernetes sets for a Service named {service}: set "
                    "enableServiceLinks to false in the pod"
                )
        elif variable not in settings and not _LINK_NAME.fullmatch(variable):
            close = get_close_matches(variable, settings, n=1, cutoff=0.8)
            yield f"{name}: there is no such setting" + "".join(f"; did you mean {near}?" for near in close)
