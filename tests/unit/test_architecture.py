"""Imports run down the layers, lazily where they are heavy, and modules stay small."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    "serving",
    "serving.backoff",
    "serving.text",
    "serving.errors",
    "serving.promotion_errors",
    "serving.sandbox",
    "serving.reference",
    "serving.version",
    "serving.outcome_queries",
    "serving.settings",
    "serving.private_files",
    "serving.watched_file",
    "serving.tasks",
    "serving.supervision",
    "serving.telemetry",
    "serving.auth",
    "serving.types",
    "serving.codecs",
    "serving.contract",
    "serving.protocols",
    "serving.processes",
    "serving.batching",
    "serving.models",
    "serving.request_context",
    "serving.error_statuses",
    "serving.hooks",
    "serving.dataplane",
    "serving.cluster",
    "serving.registry",
    "serving.server.connection_limits",
    "serving.server.tls_certificate",
    "serving.http",
    "serving.grpc",
    "serving.feature_interface",
    "serving.approval",
    "serving.journal",
    "serving.evaluation",
    "serving.drift",
    "serving.rollout",
    "serving.observers",
    "serving.app",
    "serving.server",
    "serving.client",
    "serving.integrations",
    "serving.cli",
    "serving.__main__",
]
MAX_LINES = 320


def module(path: Path) -> str:
    """Return the import name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module(path): path for package in ("serving", "training") for path in (ROOT / package).rglob("*.py")
}


@cache
def imported(name: str) -> frozenset[str]:
    """Return the project modules that a module imports, at its top or in its functions."""
    return frozenset(_imported(name))


def _imported(name: str) -> Iterator[str]:
    """Yield the project modules that a module imports, at its top or in its functions."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name} has a relative import"
            for alias in node.names:
                qualified = f"{node.module}.{alias.name}"
                if qualified in MODULES or node.module in MODULES:
                    yield qualified if qualified in MODULES else node.module


def layer(name: str) -> int:
    """Return the index of a module's layer, the lowest first: the one with the longest matching name."""
    return LAYERS.index(max((entry for entry in LAYERS if f"{name}.".startswith(f"{entry}.")), key=len))


def test_modules_and_imports_are_recognized() -> None:
    assert "serving.contract.contract" in MODULES
    assert "serving.types.columns" in [*imported("serving.contract.contract")]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("serving")))
def test_imports_run_down_the_layers(name: str) -> None:
    upwards = [other for other in imported(name) if layer(other) > layer(name)]
    assert upwards == []


FEATURES = (
    "serving.approval",
    "serving.journal",
    "serving.evaluation",
    "serving.drift",
    "serving.rollout",
    "serving.observers",
    "serving.integrations",
)
COMMANDS = (
    "serving.cli.journal",
    "serving.cli.approvers",
    "serving.cli.approve",
    "serving.cli.check",
    "serving.cli.evaluation",
)
"""Modules outside a feature's folder that are part of it, and that import it when they run."""


def feature(name: str) -> str | None:
    """Return the feature that a module belongs to; None for modules of the core."""
    return next((folder for folder in FEATURES if f"{name}.".startswith(f"{folder}.")), None)


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES if name.startswith("serving") and name not in COMMANDS)
)
def test_no_other_module_imports_features(name: str) -> None:
    foreign = [other for other in imported(name) if feature(other) not in (None, feature(name))]
    assert foreign == []


def test_imports_have_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' → '.join((*path, name))}"
        if name not in done:
            for other in imported(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize(("package", "other"), [("serving", "training"), ("training", "serving")])
def test_training_and_serving_never_import_each_other(package: str, other: str) -> None:
    for name in MODULES:
        if name.partition(".")[0] == package:
            assert not [found for found in imported(name) if found.partition(".")[0] == other], name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_is_for_type_checking_only(name: str) -> None:
    assert "TYPE_CHECKING" not in MODULES[name].read_text()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_are_small(name: str) -> None:
    lines = MODULES[name].read_text().count("\n")
    assert lines <= MAX_LINES


def test_functions_are_short() -> None:
    """Functions have a median of at most 8 lines, and nine tenths of them at most 25."""
    lengths = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for name, path in MODULES.items()
        if "pb2" not in name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert len(lengths) > 1000
    assert statistics.median(lengths) <= 8
    assert lengths[len(lengths) * 9 // 10] <= 25


SHORT_TASKS = {
    "serving.http.endpoints.api_docs": "is awaited by its callers",
    "serving.server.listener": "opens one connection, within a limit of time",
    "serving.http.endpoints.predict": "watches one request",
    "serving.journal.writer_client": "belongs to a supervised group",
    "serving.integrations.ray": "is awaited by its callers",
    "serving.registry.client": "is awaited by its callers",
    "serving.registry.blocking_calls": "runs one call, which its caller may give up",
    "serving.registry.follower": "brings one version up, and reports its failure",
    "serving.tasks": "logs the failures of short tasks",
    "serving.processes.pool": "belongs to a group that is awaited",
    "serving.supervision": "is the supervisor",
    "serving.journal.writer": "ends its own process",
    "serving.observers.spans": "sends the last spans at the end",
}
"""Modules that start tasks or threads, and why these need no supervision."""


def test_long_running_tasks_and_threads_are_supervised() -> None:
    starters = {"create_task", "ensure_future", "Thread"}
    starting = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if name.startswith("serving.") and isinstance(node, ast.Call)
        if getattr(node.func, "attr", getattr(node.func, "id", "")) in starters
    }
    assert starting == SHORT_TASKS.keys()


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("serving.app", ["mlflow", "sklearn", "scipy", "skops"]),
        ("serving.cli.main", ["mlflow", "sklearn", "pandas", "pyarrow", "fastapi", "uvicorn"]),
        ("serving.registry.client", ["mlflow", "sklearn"]),
        ("serving.processes.fork_server", ["mlflow", "sklearn", "fastapi", "uvicorn"]),
        ("serving.client", ["mlflow", "pandas", "numpy", "pyarrow", "pydantic", "fastapi", "uvicorn"]),
        ("training.cli", ["mlflow", "sklearn", "pandas"]),
    ],
)
def test_heavy_packages_are_imported_lazily(name: str, heavy: list[str]) -> None:
    program = f"import sys, {name}; print(*[each for each in {heavy} if each in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
