"""The interface between the core of the service and its features.

A feature lives in a folder of its own, whose module `feature` has a function `create`. `app.py` lists these
folders, and no other module of the core refers to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import pyarrow as pa
from fastapi import APIRouter
from prometheus_client.registry import Collector

from serving.auth.authenticator import Authenticator
from serving.hooks import RequestHook
from serving.http.readiness import StatusReporter, StatusSource
from serving.models.selector import ModelSelector
from serving.outcome_queries import OutcomeBoard
from serving.registry.client import RegistryClient
from serving.registry.follower import Follower
from serving.registry.promotion_check import PromotionCheck
from serving.registry.tag_writer import TagWriter
from serving.request_context import RequestContext
from serving.settings.settings import Settings
from serving.supervision import Supervisor
from serving.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Rows with their true outcomes, and a digest that identifies their content."""

    table: pa.Table
    digest: str


ReadOutcomes = Callable[[str, int, str], Awaitable[Outcomes]]
"""Returns the rows of a model from a number of days, with the outcomes in the column of this name."""


@dataclass(frozen=True, slots=True)
class Core:
    """The parts of the service that features may use."""

    settings: Settings
    metrics: Metrics
    registry: RegistryClient
    supervisor: Supervisor
    models: ModelSelector
    followers: Sequence[Follower]
    tag_writer: TagWriter
    guard: Authenticator | None
    outcomes: OutcomeBoard = field(default_factory=OutcomeBoard)
    outcome_readers: list[ReadOutcomes] = field(default_factory=list)
    """Functions by which a feature offers recorded outcomes to the features that follow it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A coroutine that runs while the service runs; the supervisor restarts it when it ends."""

    name: str
    run: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Feature:
    """The contributions of one feature; every member is optional."""

    hooks: Sequence[RequestHook] = ()
    """Run for each request for predictions, and must not block."""
    on_finished: Callable[[RequestContext, int], None] | None = None
    """Runs with the context and the status of each request that has ended, except successful predictions."""
    collectors: Sequence[Collector] = ()
    tasks: Sequence[Task] = ()
    status: StatusSource | None = None
    """Its part of `/ready`, `/models` and `/status`."""
    checks: Sequence[PromotionCheck] = ()
    """Conditions that a version must meet before it goes live."""
    reload: Callable[[], None] | None = None
    """Reads its files again, on SIGHUP."""
    routes: Callable[[StatusReporter], APIRouter] | None = None
    aclose: Callable[[float], Awaitable[None]] | None = None
    """Finishes its work within this number of seconds, after the last request."""


def load(folders: Sequence[str], core: Core) -> list[Feature]:
    """Create the features of these folders of the package, in this order.

    Raises:
        TracingConfigError: The environment turns on tracing that this service cannot do.
        ApproversFileError: The file of approvers cannot be used.
    """
    return [
        feature for folder in folders for feature in import_module(f"serving.{folder}.feature").create(core)
    ]
