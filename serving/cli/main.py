"""The command line: `serving run`, `serving check REFERENCE`, `serving status [URL]`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from serving import private_files
from serving.cli import journal, keys
from serving.settings.settings import OPTIONS, Settings, env_name, format_default, format_errors

# Heavy modules are imported by the commands that need them: `--help` and `status` answer at once.

app = typer.Typer(
    help="Serve the models that are promoted in an MLflow registry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

READY, NOT_READY, NO_ANSWER = 0, 1, 2
"""Exit statuses: yes; no, with the reason; it could not be found out, or the command was wrong."""


app.add_typer(keys.app, name="keys")
app.add_typer(journal.app, name="journal")


def main() -> None:
    """Run the command line."""
    private_files.set_umask()
    app()


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose first parameter is `settings` an option for each setting instead."""

    def run(**given: Any) -> None:
        own = {name: given.pop(name) for name in list(given) if name in parameters}
        command(_settings(given), **own)

    _, *parameters_of = inspect.signature(command, eval_str=True).parameters.values()
    parameters = {parameter.name: parameter for parameter in parameters_of}
    # Typer reads the options there.
    run.__signature__ = inspect.Signature([*parameters_of, *map(_option, OPTIONS)])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _option(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    told = f"{field.description} [{env_name(name)}; {format_default(name)}]"
    kinds: dict[Any, str] = {int: "INTEGER", float: "NUMBER"}
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=told[:1].upper() + told[1:],
        show_default=False,
        metavar=kinds.get(field.annotation, "TEXT"),
    )
    kind, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[str | None, option]
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        _fail(*format_errors(error))


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        err.print(f"[red]✗[/] {_plain(line)}", soft_wrap=True)
    raise typer.Exit(NO_ANSWER)


@app.command()
@with_settings
def run(settings: Settings) -> None:
    """Serve the models, and follow what is promoted."""
    from serving.errors import ApiKeyFileError, TracingConfigError
    from serving.server.server import StartupError, serve

    _configure_logging(settings, settings.log_level)
    try:
        serve(settings)
    except ApiKeyFileError as error:
        _fail(f"SERVING_KEYS_FILE: {error}")
    except (StartupError, TracingConfigError) as error:
        _fail(str(error))


@app.command()
@with_settings
def check(
    settings: Settings,
    reference: Annotated[str, typer.Argument(help="For example models:/iris/Production.")],
) -> None:
    """Would this version go live? Resolve, load and verify it; the exit status says."""
    from serving.cli.check import check_reference as find_out
    from serving.errors import InvalidReference, ProcessDied, RegistryError, Rejected
    from serving.reference import Reference

    _configure_logging(settings, "error")
    try:
        parsed = Reference.parse(reference)
        with err.status(f"{reference}: …") as status:
            loaded = asyncio.run(
                find_out(settings, parsed, lambda what: status.update(f"{reference}: {what} …"))
            )
    except InvalidReference as error:
        _fail(str(error))
    except (RegistryError, ProcessDied) as error:
        _fail(f"{reference} can't be checked: {error}")
    except Rejected as error:
        out.print(
            f"[bold red]✗ {_plain(reference)} would not go live[/]: {_plain(str(error))}",
            soft_wrap=True,
        )
        raise typer.Exit(NOT_READY) from None
    _print_contract(loaded)
    for warning in loaded.warnings:
        out.print(f"[yellow]![/] {_plain(warning)}", soft_wrap=True)
    out.print(f"[bold green]✓ {_plain(reference)} would go live[/]: {_plain(str(loaded.version))}")


@app.command()
def status(
    url: Annotated[str, typer.Argument(help="Where the service is.")] = "http://127.0.0.1:8000",
) -> None:
    """Which version of each model is live? The exit status says whether all are."""
    import httpx

    try:
        ready = httpx.get(f"{url.rstrip('/')}/ready", timeout=5).json()
        table, registry = _models(ready["models"]), ready["registry"]
        reach = {True: "reachable", False: "[red]away[/]", None: "not asked yet"}[registry["reachable"]]
        where, is_ready = _plain(registry["uri"]), ready["status"] == "ready"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError) as error:
        _fail(f"{url} does not answer as a serving front does: {str(error) or type(error).__name__}")
    out.print(table)
    out.print(f"registry {where}: {reach}", soft_wrap=True)
    for replica in ready.get("replicas", ()):
        versions = ", ".join(f"{uri} version {version}" for uri, version in replica["models"].items())
        out.print(_plain(f"replica {replica['id']} on {replica['node'][:12]}: {versions}"), soft_wrap=True)
    raise typer.Exit(READY if is_ready else NOT_READY)


def _models(models: list[dict[str, Any]]) -> Any:
    """A table of what `/ready` tells of each model."""
    from rich.table import Table

    table = Table("model", "version", "state", "since", "note", box=None, header_style="bold")
    for model in models:
        colour = {"live": "green", "asleep": "dim", "waking": "yellow"}.get(model["state"], "red")
        notes = [model["candidate"]["reason"]] if model["candidate"] else []
        notes += [*model["warnings"], *([model["reason"]] if model["reason"] and not notes else [])]
        table.add_row(
            _plain(model["uri"]),
            model["version"] or model["model_id"] or "–",
            f"[{colour}]{_plain(model['state'])}[/]",
            (model["loaded_at"] or "–")[:19].replace("T", " "),
            _plain("; ".join(notes)),
        )
    return table


@app.command()
@with_settings
def webhook(
    settings: Settings,
    url: Annotated[str, typer.Argument(help="Where MLflow reaches this service, as https://host.")],
    name: Annotated[str, typer.Option(help="The webhook's name in MLflow.")] = "serving-front",
) -> None:
    """Have MLflow tell of changes at once: registers a webhook, signed with SERVING_WEBHOOK_SECRET.

    MLflow sends none for stages: those are still seen by looking every second.
    """
    from serving.errors import RegistryError
    from serving.registry.client import RegistryClient

    if settings.webhook_secret is None:
        _fail("SERVING_WEBHOOK_SECRET: set it here and where the service runs, to the same value")
    registry = RegistryClient(settings)
    target, secret = f"{url.rstrip('/')}/webhooks/mlflow", settings.webhook_secret.get_secret_value()
    try:
        with err.status(f"registering {target} …"):
            made = asyncio.run(registry.create_webhook(name, target, secret))
    except RegistryError as error:
        _fail(f"the webhook could not be registered: {error}")
    finally:
        registry.close()
    out.print(f"[green]✓[/] MLflow tells {_plain(target)} (webhook {made})", soft_wrap=True)


def _print_contract(loaded: Any) -> None:
    from rich.table import Table

    table = Table("input", "type", "required", "facets", box=None, header_style="bold")
    for column in loaded.contract.columns:
        facets = ", ".join(f"{word} {value}" for word, value in column.facets)
        table.add_row(
            _plain(column.name), column.kind.name, "yes" if column.required else "no", _plain(facets)
        )
    out.print(table)
    fields = ", ".join(loaded.contract.outputs.fields)
    out.print(f"answers [bold]{fields}[/]")


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    return text.replace("[", r"\[")


def _configure_logging(settings: Settings, level: str) -> None:
    from serving.telemetry.logging import configure as configure_logging

    secret = settings.webhook_secret
    configure_logging(settings.log_format, level, [secret.get_secret_value()] if secret else [])
