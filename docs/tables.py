"""Generate tables of the reference from the code. `python docs/tables.py` writes them; tests compare them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from serving.cli.main import app
from serving.settings.settings import OPTIONS, Settings, env_name, format_default
from training.cli import _parser

REFERENCE = Path(__file__).parent / "reference"


def settings() -> str:
    """Return the table of all settings."""
    rows = [
        f"| `{env_name(name)}` | `{format_default(name)}` | {Settings.model_fields[name].description} |"
        for name in OPTIONS
    ]
    return "\n".join(["| variable | default | description |", "|---|---|---|", *rows])


def commands() -> str:
    """Return a section for each command of `serving` and of `python -m training`."""
    training: dict[str, argparse.ArgumentParser] = next(
        action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return "\n\n".join(
        [
            *_typer_sections("serving", typer.main.get_command(app)),
            *(_argparse_section(f"python -m training {name}", parser) for name, parser in training.items()),
        ]
    )


def _typer_sections(name: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for child_name, child in command.commands.items():
            yield from _typer_sections(f"{name} {child_name}", child)
        return
    takes_settings = {*OPTIONS} <= {param.name for param in command.params}
    own = [param for param in command.params if not (takes_settings and param.name in OPTIONS)]
    arguments = [param for param in own if param.param_type_name == "argument"]
    usage = " ".join([name, *(_optional(param.name.upper(), param.required) for param in arguments)])
    rows = [(_name(param.name.upper()), param.help) for param in arguments]
    rows += [(_name(*param.opts), param.help) for param in own if param not in arguments]
    note = "\n\nEvery [setting](settings.md) is an option." if takes_settings else ""
    yield _section(usage, command.help + note, rows)


def _argparse_section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [
        (_name(*action.option_strings), action.help or f"one of {', '.join(action.choices or ())}")
        for action in parser._actions
        if action.dest != "help"
    ]
    description = parser.description or ""
    return _section(name, description[:1].upper() + description[1:], rows)


def _section(usage: str, text: str, rows: Sequence[tuple[str, str | None]]) -> str:
    table = [f"| {name} | {description} |" for name, description in rows]
    head = ["", "| argument | description |", "|---|---|"] if table else []
    return "\n".join([f"## `{usage}`", "", text.strip(), *head, *table])


def _optional(name: str, required: bool) -> str:
    return name if required else f"[{name}]"


def _name(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES = {"settings.md": ("settings", settings), "commands.md": ("commands", commands)}
"""The marker and the generator of each page."""


def replaced(text: str, marker: str, table: str) -> str:
    """Return a page with the part between its markers replaced by a table."""
    part = re.compile(rf"(<!-- {marker} -->\n).*(\n<!-- /{marker} -->)", re.DOTALL)
    return part.sub(lambda match: f"{match[1]}{table}{match[2]}", text)


if __name__ == "__main__":
    for page, (marker, generate) in TABLES.items():
        path = REFERENCE / page
        path.write_text(replaced(path.read_text(), marker, generate()))
