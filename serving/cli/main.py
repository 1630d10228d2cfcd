"""The command line: `serving run`, `serving check REFERENCE`, `serving status [URL]`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from serving import __version__, private_files
from serving.cli import approvers, journal, keys
from serving.cli.console import (
    EXIT_ERROR,
    EXIT_NEGATIVE,
    EXIT_OK,
    err,
    escape,
    fail,
    ignore_closed_pipe,
    out,
    report,
    succeed,
    warn,
)
from serving.cli.options import (
    configure_logging,
    unknown_variables,
    warn_of_unknown_variables,
    with_options,
    with_settings,
)
from serving.settings.platforms import PORT_VARIABLES, SAGEMAKER_PORT, first_set
from serving.settings.settings import Settings

# The commands themselves import heavy modules, so that `--help` and `status` stay fast.

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(keys.app, name="keys")
app.add_typer(approvers.app, name="approvers")
app.add_typer(journal.app, name="journal")
_SERVICES = ("run", "serve")
"""The commands that run a service, which logs warnings."""
_UNIX = "unix:"
"""Precedes the path of a Unix socket in place of a URL."""


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve the models that are promoted in an MLflow registry."""
    if context.invoked_subcommand not in _SERVICES:
        warn_of_unknown_variables()


def main() -> None:
    """Run the command line."""
    private_files.set_umask()
    ignore_closed_pipe()
    try:
        status = app(standalone_mode=False)
    except TyperException as error:  # a mistake in the options or arguments
        if message := " ".join(error.format_message().split()):  # empty if the help has been printed instead
            report(message)
        status = EXIT_ERROR
    except typer.Abort:  # an interrupted prompt
        status = 130
    sys.exit(status)


@app.command()
@with_settings
def run(settings: Settings) -> None:
    """Serve the models and follow their promotions."""
    _serve(settings)


def _serve(settings: Settings) -> None:
    from serving.server import signals

    signals.survive_start()
    from serving.errors import ApiKeyFileError, ApproversFileError, TracingConfigError
    from serving.server.server import serve
    from serving.server.sockets import StartupError

    configure_logging(settings, settings.log_level)
    for line in unknown_variables():
        logging.getLogger("serving").warning("%s", line)
    try:
        serve(settings)
    except ApiKeyFileError as error:
        fail(with_options(f"SERVING_KEYS_FILE: {error}"))
    except ApproversFileError as error:
        fail(with_options(f"SERVING_APPROVERS: {error}"))
    except (StartupError, TracingConfigError) as error:
        fail(with_options(str(error)))


def _with_sagemaker_port(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command listen on SageMaker's port and on all addresses, unless settings name others."""

    @wraps(command)
    def on_sagemaker(**values: Any) -> None:
        if not first_set(PORT_VARIABLES[1:], os.environ):
            os.environ["SAGEMAKER_BIND_TO_PORT"] = str(SAGEMAKER_PORT)
        command(**values)

    return on_sagemaker


@app.command()
@_with_sagemaker_port
@with_settings
def serve(settings: Settings) -> None:
    """Do the same as `run`, on port 8080 of all addresses by default: SageMaker starts containers with it."""
    _serve(settings)


@app.command()
@with_settings
def check(
    settings: Settings,
    reference: Annotated[str, typer.Argument(help="For example models:/iris/Production.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Evaluate it against the rules in serving.require.")
    ] = False,
) -> None:
    """Check whether a version would go live: resolve, load and verify it. Exit status 0: yes, 1: no."""
    from serving.errors import ApproversFileError, InvalidReference, ProcessDied, RegistryError
    from serving.promotion_errors import PromotionWaits, Rejected
    from serving.reference import Reference

    configure_logging(settings, "error")
    try:
        parsed = Reference.parse(reference)
        with err.status(f"{escape(reference)}: …") as status:

            def progress(step: str) -> None:
                status.update(escape(f"{reference}: {step} …"))

            loaded = asyncio.run(_check(settings, parsed, progress, evaluate=evaluate))
    except InvalidReference as error:
        fail(str(error))
    except (RegistryError, ProcessDied) as error:
        fail(f"cannot check {reference}: {error}")
    except ApproversFileError as error:
        fail(with_options(f"SERVING_APPROVERS: {error}"))
    except (Rejected, PromotionWaits) as error:
        out.print(
            f"[bold red]✗ {escape(reference)} would not go live[/]: {escape(str(error))}", soft_wrap=True
        )
        raise typer.Exit(EXIT_NEGATIVE) from None
    _print_contract(loaded)
    for warning in loaded.warnings:
        warn(warning, out)
    out.print(f"[bold green]✓ {escape(reference)} would go live[/]: {escape(str(loaded.version))}")


app.command()(with_settings(approvers.approve))


async def _check(
    settings: Settings, reference: Any, progress: Callable[[str], None], *, evaluate: bool
) -> Any:
    """Return the verified version."""
    if not evaluate:
        from serving.cli.check import check_reference

        return await check_reference(settings, reference, progress)
    from serving.cli.evaluation import evaluate_reference

    loaded, evidence = await evaluate_reference(settings, reference, progress)
    if evidence is None:
        warn(f"it was not evaluated: {reference.name} has no rules in its tag serving.require")
    return loaded


@app.command()
def status(
    url: Annotated[str, typer.Argument(help="URL of the service, or unix:PATH.")] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print the response of /ready as JSON.")] = False,
) -> None:
    """Show the live version of each model. Exit status 0: the service is ready, 1: it is not."""
    import httpx

    try:
        if url.startswith(_UNIX):
            transport, base = httpx.HTTPTransport(uds=url.removeprefix(_UNIX)), "http://localhost"
        else:
            transport, base = None, url.rstrip("/")
        with httpx.Client(transport=transport, timeout=5) as client:
            ready = client.get(f"{base}/ready").json()
        table, registry = _model_table(ready["models"]), ready["registry"]
        states = {True: "reachable", False: "[red]unreachable[/]", None: "not contacted yet"}
        registry_state = states[registry["reachable"]]
        if registry["reachable"] is False and (failure := registry.get("state", "away")) != "away":
            registry_state = f"[red]{escape(failure)}[/]"
        uri, is_ready = escape(registry["uri"] or "(hidden)"), ready["status"] == "ready"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError) as error:
        fail(f"{url} does not respond like this service: {str(error) or type(error).__name__}")
    if as_json:
        typer.echo(json.dumps(ready, indent=2))
    else:
        out.print(table)
        out.print(f"registry {uri}: {registry_state}", soft_wrap=True)
        _print_instances(ready)
    raise typer.Exit(EXIT_OK if is_ready else EXIT_NEGATIVE)


def _print_instances(ready: dict[str, Any]) -> None:
    for instance in ready.get("replicas", ()):
        versions = ", ".join(f"{uri} version {version}" for uri, version in instance["models"].items())
        out.print(escape(f"instance {instance['id']} on {instance['node'][:12]}: {versions}"), soft_wrap=True)


def _model_table(models: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("model", "version", "state", "since", "note", box=None, header_style="bold")
    for model in models:
        colour = {"live": "green", "asleep": "dim", "waking": "yellow"}.get(model["state"], "red")
        notes = [model["candidate"]["reason"]] if model["candidate"] else []
        notes += [*model["warnings"], *([model["reason"]] if model["reason"] and not notes else [])]
        table.add_row(
            escape(model["uri"]),
            model["version"] or model["model_id"] or "–",
            f"[{colour}]{escape(model['state'])}[/]",
            (model["loaded_at"] or "–")[:19].replace("T", " "),
            escape("; ".join(notes)),
        )
    return table


@app.command()
@with_settings
def webhook(
    settings: Settings,
    url: Annotated[str, typer.Argument(help="URL by which MLflow reaches this service: https://host.")],
    name: Annotated[str, typer.Option(help="Name of the webhook in MLflow.")] = "serving-front",
) -> None:
    """Register a webhook in MLflow, signed with SERVING_WEBHOOK_SECRET, that announces changes at once.

    MLflow sends no webhook for stages. The service detects their changes by polling.
    """
    from serving.errors import RegistryError
    from serving.registry.client import RegistryClient

    if settings.webhook_secret is None:
        fail(with_options("SERVING_WEBHOOK_SECRET: set it to the same value here and for the service"))
    registry = RegistryClient(settings)
    target, secret = f"{url.rstrip('/')}/webhooks/mlflow", settings.webhook_secret.get_secret_value()
    try:
        with err.status(f"registering {escape(target)} …"):
            webhook_id = asyncio.run(registry.create_webhook(name, target, secret))
    except RegistryError as error:
        fail(f"cannot register the webhook: {error}")
    finally:
        registry.close()
    succeed(f"registered webhook {webhook_id}: MLflow sends changes to {target}", out)


def _print_contract(loaded: Any) -> None:
    from rich.table import Table

    table = Table("input", "type", "required", "constraints", box=None, header_style="bold")
    for column in loaded.contract.columns:
        constraints = ", ".join(f"{keyword} {value}" for keyword, value in column.constraints)
        table.add_row(
            escape(column.name), column.kind.name, "yes" if column.required else "no", escape(constraints)
        )
    out.print(table)
    out.print(f"response fields: [bold]{escape(', '.join(loaded.contract.outputs.fields))}[/]")
