"""Commands for approvals: `serving approve REFERENCE`, `serving approvers create / list / revoke`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli.console import err, escape, fail, out, succeed
from serving.cli.options import configure_logging, with_options
from serving.errors import ApproversFileError
from serving.settings.settings import Settings

# The commands themselves import the feature, which may be absent, and cryptography.

app = typer.Typer(help="Create, list and revoke approvers of versions.", no_args_is_help=True)
_PASSPHRASE_VARIABLE = "APPROVER_PASSPHRASE"  # noqa: S105 (the name, not the secret)

File = Annotated[
    Path,
    typer.Option("--file", envvar="SERVING_APPROVERS", help="The file of approvers.", show_default=False),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the approver, as MLflow shows the user.")],
    file: File,
    key: Annotated[
        Path,
        typer.Option(
            help="New file for the private key; a passphrase from the prompt or from APPROVER_PASSPHRASE "
            "encrypts it."
        ),
    ],
    expires: Annotated[str, typer.Option(help="Time of expiry: 90d, 12h or an ISO 8601 date.")] = "",
) -> None:
    """Create a key, whose public part is added to the file. The private key stays with the approver."""
    from serving.approval import approvers, private_key

    expiry = _parse_expiry(expires)
    if not approvers.is_name(name):
        message = f"{name!a} is no name: write at most 100 letters, digits and any of ._@+-"
        raise typer.BadParameter(message, param_hint="NAME")
    present = _read(file) if file.exists() else ()
    try:
        private = private_key.create(key, name, _new_passphrase())
    except private_key.PrivateKeyError as error:
        fail(str(error))
    entry = approvers.create(name, private_key.public_bytes(private), expiry)
    try:
        approvers.write(file, (*present, entry))
    except ApproversFileError as error:
        with suppress(OSError):
            key.unlink()
        fail(str(error))
    succeed(f"created key {entry.id} of {name}: the private key is in {key}, the public key in {file}")


@app.command("list")
def list_(file: File) -> None:
    """List the approvers with their keys."""
    from rich.table import Table

    table = Table("id", "name", "created", "expires", box=None, header_style="bold")
    now = datetime.now(UTC)
    for approver in _read(file):
        expires = f"{approver.expires:%Y-%m-%d %H:%M}" if approver.expires else "never"
        table.add_row(
            approver.id,
            escape(approver.name),
            f"{approver.created:%Y-%m-%d %H:%M}",
            f"[red]{expires}[/]" if approver.has_expired(now) else expires,
        )
    out.print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the approver, or id of one key.")],
    file: File,
) -> None:
    """Revoke all keys of an approver, or one key by its id, and with them their approvals."""
    from serving.approval import approvers

    entries = _read(file)
    remaining = [entry for entry in entries if name not in (entry.name, entry.id)]
    if len(remaining) == len(entries):
        fail(f"there is no approver with the name or key {name}")
    try:
        approvers.write(file, remaining)
    except ApproversFileError as error:
        fail(str(error))
    succeed(f"revoked keys: {len(entries) - len(remaining)}")


def approve(
    settings: Settings,
    reference: Annotated[str, typer.Argument(help="For example models:/iris/7.")],
    key: Annotated[
        Path,
        typer.Option(
            help="File of the private key (see `serving approvers create`); the passphrase comes from the "
            "prompt or from APPROVER_PASSPHRASE.",
            show_default=False,
        ),
    ],
    for_reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            help="Reference under which it may go live, repeatable; default: those in SERVING_MODELS that "
            "name the model.",
        ),
    ] = None,
    approver: Annotated[
        str, typer.Option(help="Name of the approver; default: the name in the file of the key.")
    ] = "",
) -> None:
    """Approve a version: sign its number, the digest of its artifacts, and references to serve it under."""
    from serving.approval import approvers
    from serving.cli.approve import Signer
    from serving.cli.approve import approve as approve_version
    from serving.errors import ApproversFileError, InvalidReference, RegistryError
    from serving.promotion_errors import Rejected
    from serving.reference import Reference

    configure_logging(settings, "error")
    name, private = _load_private_key(key)
    name = approver or name
    if not (name and approvers.is_name(name)):
        fail(f"{key} does not name its approver: add --approver NAME, as in the file of approvers")
    try:
        parsed = Reference.parse(reference)
        with err.status(f"{escape(reference)}: …") as status:

            def progress(step: str) -> None:
                status.update(escape(f"{reference}: {step} …"))

            signer = Signer(name, private)
            version, approval = asyncio.run(
                approve_version(settings, parsed, for_reference or (), signer, progress)
            )
    except ApproversFileError as error:
        fail(with_options(f"SERVING_APPROVERS: {error}"))
    except (InvalidReference, RegistryError, Rejected) as error:
        fail(f"cannot approve {reference}: {error}")
    succeed(f"{approval.approver} approved {version} for {', '.join(approval.references)}", out)
    out.print(f"artifacts: {approval.digest}", soft_wrap=True)


def _load_private_key(file: Path) -> tuple[str | None, Any]:
    """Return the approver's name in the file of a private key, if it has one, and the key."""
    from serving.approval import private_key

    passphrase = os.environ.get(_PASSPHRASE_VARIABLE, "")
    try:
        try:
            return private_key.read(file, passphrase)
        except private_key.PassphraseRequired:
            if not sys.stdin.isatty():
                fail(f"{file} is encrypted: set {_PASSPHRASE_VARIABLE}")
            return private_key.read(file, typer.prompt("Passphrase", hide_input=True, err=True))
    except private_key.PrivateKeyError as error:
        fail(str(error))


def _new_passphrase() -> str:
    if _PASSPHRASE_VARIABLE in os.environ or not sys.stdin.isatty():
        return os.environ.get(_PASSPHRASE_VARIABLE, "")
    text = "Passphrase (empty: the key is not encrypted)"
    passphrase: str = typer.prompt(
        text, "", hide_input=True, confirmation_prompt=True, show_default=False, err=True
    )
    return passphrase


def _parse_expiry(text: str) -> datetime | None:
    from serving.auth.api_keys import parse_expiry

    try:
        return parse_expiry(text, datetime.now(UTC)) if text else None
    except (ValueError, OverflowError):
        message = f"{text} is neither a time in the future nor a period such as 90d"
        raise typer.BadParameter(message, param_hint="--expires") from None


def _read(file: Path) -> Sequence[Any]:
    from serving.approval import approvers

    try:
        return approvers.read(file)
    except ApproversFileError as error:
        fail(str(error))
