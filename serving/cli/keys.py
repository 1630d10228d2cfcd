"""Commands for API keys: `serving keys create NAME`, `serving keys list`, `serving keys revoke NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from serving.auth import api_keys
from serving.auth.api_keys import ApiKey, Scope
from serving.cli.console import escape, fail, out, succeed
from serving.errors import ApiKeyFileError

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

File = Annotated[
    Path,
    typer.Option("--file", envvar="SERVING_KEYS_FILE", help="The key file.", show_default=False),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the owner, who may have several keys.")],
    file: File,
    scope: Annotated[
        Scope, typer.Option(help="predict: predictions only; admin: all endpoints.")
    ] = Scope.PREDICT,
    models: Annotated[str, typer.Option(help="Models of the key, comma separated; default: all.")] = "",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Maximum requests per second.")] = None,
    expires: Annotated[str, typer.Option(help="Time of expiry: 90d, 12h or an ISO 8601 date.")] = "",
) -> None:
    """Create a key and print it. The file contains only its hash, so that it cannot be printed again."""
    now = datetime.now(UTC)
    try:
        expiry = api_keys.parse_expiry(expires, now) if expires else None
    except (ValueError, OverflowError):
        message = f"{expires} is neither a time in the future nor a period such as 90d"
        raise typer.BadParameter(message, param_hint="--expires") from None
    key_models = [model.strip() for model in models.split(",") if model.strip()]
    plaintext, key = api_keys.create_key(name, scope, key_models, rate, expiry)
    _write(file, (*(_read(file) if file.exists() else ()), key))
    succeed(f"created key {key.id} of {name}; send it as Authorization: Bearer …")
    typer.echo(plaintext)


@app.command("list")
def list_(file: File) -> None:
    """List the keys with their owners and what they give access to."""
    table = Table("id", "name", "scope", "models", "rate", "expires", box=None, header_style="bold")
    now = datetime.now(UTC)
    for key in _read(file):
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        table.add_row(
            key.id,
            escape(key.name),
            key.scope.value,
            escape(", ".join(key.models)) or "all",
            f"{key.rate:g}/s" if key.rate else "unlimited",
            f"[red]{expires}[/]" if key.has_expired(now) else expires,
        )
    out.print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the owner, or id of one key.")],
    file: File,
) -> None:
    """Revoke all keys of an owner, or one key by its id. Running services apply this within a second."""
    keys = _read(file)
    remaining = [key for key in keys if name not in (key.name, key.id)]
    if len(remaining) == len(keys):
        fail(f"there is no key with the name or id {name}")
    _write(file, remaining)
    succeed(f"revoked keys: {len(keys) - len(remaining)}")


def _read(file: Path) -> tuple[ApiKey, ...]:
    try:
        return api_keys.read(file)
    except ApiKeyFileError as error:
        fail(str(error))


def _write(file: Path, keys: Sequence[ApiKey]) -> None:
    try:
        api_keys.write(file, keys)
    except ApiKeyFileError as error:
        fail(str(error))
