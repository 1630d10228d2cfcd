"""Command line of `python -m training`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from training import bootstrap, registry
from training.errors import TrainingError
from training.model import Logged

_PROGRAM = "python -m training"
_EPILOG = (
    "MLFLOW_TRACKING_URI (and MLFLOW_REGISTRY_URI) select the registry; default: the SQLite database "
    "mlruns/mlflow.db below the current folder."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 1 after printing an error. A wrong argument exits with 2."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("MLFLOW_TRACKING_URI", registry.DEFAULT_URI)
    # The creation of a new database logs a line for each of dozens of migrations.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    registry.use_installed_drivers()
    try:
        arguments.run(arguments)
    except TrainingError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(_PROGRAM, description="Train and promote models.", epilog=_EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_promote(commands)
    _add_bootstrap(commands)
    return parser


def _add_train(commands: Any) -> None:
    description = "train a model and register it as a new version"
    command = commands.add_parser("train", help=description, description=description, epilog=_EPILOG)
    command.add_argument("--model", choices=("iris", "diabetes"), default="iris")
    command.add_argument("--seed", type=_seed, default=0, help="seed of the split, default 0")
    command.add_argument(
        "--test-size", type=_fraction, default=0.25, help="fraction of held-out rows, default 0.25"
    )
    command.add_argument(
        "--regularization", type=_positive, default=1.0, help="strength of the penalty, default 1.0"
    )
    command.set_defaults(run=_train)


def _add_promote(commands: Any) -> None:
    description = "put a version into a stage and archive the previous one, or move an alias to it"
    command = commands.add_parser("promote", help=description, description=description, epilog=_EPILOG)
    command.add_argument("--version", type=_version_number, required=True, help="number of the version")
    command.add_argument("--name", default="iris", help="registered model, default iris")
    # Empty means absent: an entry point of MLproject cannot omit an option.
    stages = f"{', '.join(registry.STAGES)}; default Production"
    command.add_argument("--stage", type=_stage, default="", help=stages)
    command.add_argument("--alias", default="", help="alias such as champion, instead of a stage")
    command.set_defaults(run=_promote, parser=command)


def _add_bootstrap(commands: Any) -> None:
    description = f"train and promote {bootstrap.NAME}, unless {bootstrap.STAGE} contains a version"
    command = commands.add_parser("bootstrap", help=description, description=description, epilog=_EPILOG)
    command.set_defaults(run=_bootstrap)


def _train(arguments: Namespace) -> None:
    logged = _fit(
        arguments.model,
        seed=arguments.seed,
        test_size=arguments.test_size,
        regularization=arguments.regularization,
    )
    also = "" if logged.name == "iris" else f" --name {logged.name}"
    print(f"promote it with: {_PROGRAM} promote{also} --version {logged.version}")


def _fit(model: str, **options: Any) -> Logged:
    from training.diabetes import diabetes
    from training.example import Options, train
    from training.iris import iris

    trained = train({"iris": iris, "diabetes": diabetes}[model](), Options(**options))
    logged = trained.logged
    print(f"{logged.name}: trained on {trained.rows} rows, held out {trained.held_out}")
    for metric, value in trained.metrics.items():
        print(f"  {metric:<24}{value:.4g}")
    print(f"registered as {logged.name} version {logged.version} (run {logged.run_id})")
    return logged


def _promote(arguments: Namespace) -> None:
    if arguments.alias and arguments.stage:
        arguments.parser.error("--stage or --alias, not both")
    if arguments.alias:
        registry.set_alias(arguments.name, arguments.version, arguments.alias)
        print(f"{arguments.name} version {arguments.version} is @{arguments.alias} now")
    else:
        _promote_to_stage(arguments.name, arguments.version, arguments.stage or "Production")


def _promote_to_stage(name: str, version: str, stage: str) -> None:
    archived = registry.promote(name, version, stage)
    before = f", archived: {', '.join(archived)}" if archived else ""
    print(f"{name} version {version} is in {stage} now{before}")


def _bootstrap(_: Namespace) -> None:
    # The service waits for this command: report a server that is down in seconds, not in MLflow's minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    if bootstrap.is_needed():
        print(f"no version of {bootstrap.NAME} is in {bootstrap.STAGE}: training the first one")
        logged = _fit(bootstrap.NAME)
        _promote_to_stage(bootstrap.NAME, str(logged.version), bootstrap.STAGE)


def _stage(text: str) -> str:
    stage = text.capitalize()
    if stage not in (*registry.STAGES, ""):
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(registry.STAGES)}")
    return stage


def _version_number(text: str) -> str:
    return str(_check_range(int(text), int(text) > 0))


def _seed(text: str) -> int:
    return int(_check_range(int(text), 0 <= int(text) < 2**32))


def _fraction(text: str) -> float:
    return _check_range(float(text), 0 < float(text) < 1)


def _positive(text: str) -> float:
    return _check_range(float(text), 0 < float(text) < float("inf"))


def _check_range(value: float, is_valid: bool) -> float:
    if not is_valid:
        raise argparse.ArgumentTypeError(f"{value} is out of range")
    return value
