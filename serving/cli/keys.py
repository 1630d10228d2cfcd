"""The commands of API keys: `serving keys create NAME`, `list`, `revoke NAME`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from serving.auth import api_keys
from serving.auth.api_keys import ApiKey, Scope
from serving.errors import ApiKeyFileError

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

File = Annotated[
    Path,
    typer.Option("--file", envvar="SERVING_KEYS_FILE", help="The file of keys.", show_default=False),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; it may have several.")],
    file: File,
    scope: Annotated[Scope, typer.Option(help="What it opens: predictions, or all.")] = Scope.PREDICT,
    models: Annotated[str, typer.Option(help="The models that it is for, comma separated.")] = "",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Most requests a second.")] = None,
    expires: Annotated[str, typer.Option(help="When: 90d, 12h, or an ISO 8601 date.")] = "",
) -> None:
    """Make a key, and print it: it is not kept, and can't be told again."""
    now = datetime.now(UTC)
    try:
        until = api_keys.parse_expiry(expires, now) if expires else None
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{expires} is neither a time to come nor such as 90d") from None
    chosen = [model.strip() for model in models.split(",") if model.strip()]
    told, kept = api_keys.create_key(name, scope, chosen, rate, until)
    _write(file, (*(_read(file) if file.exists() else ()), kept))
    err.print(
        f"[green]✓[/] key {kept.id} of {_plain(name)}; send it as Authorization: Bearer …", soft_wrap=True
    )
    typer.echo(told)


@app.command("list")
def list_(file: File) -> None:
    """List the keys: whose they are, and what they open."""
    table = Table("id", "name", "scope", "models", "rate", "expires", box=None, header_style="bold")
    now = datetime.now(UTC)
    for key in _read(file):
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        table.add_row(
            key.id,
            _plain(key.name),
            key.scope.value,
            _plain(", ".join(key.models)) or "all",
            f"{key.rate:g}/s" if key.rate else "any",
            f"[red]{expires}[/]" if key.has_expired(now) else expires,
        )
    out.print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose keys, or the id of one.")],
    file: File,
) -> None:
    """Revoke all keys of a name, or the one with this id; running services notice within a second."""
    found = _read(file)
    left = [key for key in found if name not in (key.name, key.id)]
    if len(left) == len(found):
        _fail(f"no key is called {name}")
    _write(file, left)
    err.print(f"[green]✓[/] revoked: {len(found) - len(left)}")


def _read(file: Path) -> tuple[ApiKey, ...]:
    try:
        return api_keys.read(file)
    except ApiKeyFileError as error:
        _fail(str(error))


def _write(file: Path, kept: tuple[ApiKey, ...] | list[ApiKey]) -> None:
    try:
        api_keys.write(file, kept)
    except ApiKeyFileError as error:
        _fail(str(error))


def _fail(detail: str) -> NoReturn:
    err.print(f"[red]✗[/] {_plain(detail)}", soft_wrap=True)
    raise typer.Exit(2)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
