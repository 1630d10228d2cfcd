"""The background components of the service in `/ready`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from serving.supervision import Supervisor


class ComponentState(BaseModel):
    """A background component of the service that ended unexpectedly."""

    name: str
    detail: str = Field(description="which one of several with this name")
    state: str = Field(description="running (again), or restarting")
    restarts: int


def component_states(supervisor: Supervisor) -> list[ComponentState]:
    """Return the components that ended unexpectedly a short time ago."""
    return [
        ComponentState(
            name=each.name,
            detail=each.detail,
            state="running" if each.is_running else "restarting",
            restarts=each.restarts,
        )
        for each in supervisor.unsteady
    ]
