"""The state of background components in `/ready`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from serving.supervision import Supervisor


class ComponentState(BaseModel):
    """A background component of the service that ended unexpectedly."""

    name: str
    detail: str = Field(description="distinguishes components of one name")
    state: str = Field(description="running (it was restarted), or restarting")
    restarts: int


def component_states(supervisor: Supervisor) -> list[ComponentState]:
    """Return the components that ended unexpectedly a short time ago."""
    return [
        ComponentState(
            name=component.name,
            detail=component.detail,
            state="running" if component.is_running else "restarting",
            restarts=component.restarts,
        )
        for component in supervisor.unsteady
    ]
