"""One option of the command line for each setting."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from serving.cli.console import escape, fail, warn
from serving.settings.settings import OPTIONS, Settings, env_name, format_default, format_errors, panel
from serving.settings.unknown_variables import suspicious_variables

_OPTION_OF = {env_name(name): f"--{name.replace('_', '-')}" for name in OPTIONS}
_METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH", tuple: "LIST"}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the first parameter of a command, `settings`, by one option for each setting."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**values: Any) -> None:
        arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
        command(_settings(values), **arguments)

    signature = inspect.Signature([*own, *map(_parameter, OPTIONS)])
    # Typer reads the options from this attribute.
    run.__signature__ = signature  # type: ignore[attr-defined]  # functions take attributes
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def unknown_variables() -> Iterator[str]:
    """Yield a line for each environment variable that looks like a setting and is none."""
    return suspicious_variables(os.environ, _OPTION_OF)


def configure_logging(settings: Settings, level: str) -> None:
    """Configure logging, with the secrets of the settings redacted."""
    from serving.telemetry.logging import configure

    secret = settings.webhook_secret
    configure(settings.log_format, level, [secret.get_secret_value()] if secret else [])


def warn_of_unknown_variables() -> None:
    """Print a warning for each environment variable that looks like a setting and is none."""
    for line in unknown_variables():
        warn(line)


def with_options(line: str) -> str:
    """Return a message with the options of the variables that it names."""
    variables = dict.fromkeys(re.findall(r"\b[A-Z]+_[A-Z_]+\b", line))
    options = ", ".join(_OPTION_OF[variable] for variable in variables if variable in _OPTION_OF)
    return f"{line} (option {options})" if options else line


def _settings(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        fail(*map(with_options, format_errors(error)))


def _parameter(name: str) -> inspect.Parameter:
    """Return the parameter of a setting.

    Values stay text, because the settings check all of them together: Typer would stop at the first mistake.
    """
    field, flag = Settings.model_fields[name], _OPTION_OF[env_name(name)]
    value_type = _value_type(field.annotation)
    is_switch, choices = value_type is bool, _choices(value_type)
    help_text = f"{field.description}{_bounds(field)} [{env_name(name)}; default: {_default(name)}]"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        help=escape(help_text[:1].upper() + help_text[1:]),
        show_default=False,
        metavar="" if is_switch else "|".join(choices) or _METAVARS.get(value_type, "TEXT"),
        autocompletion=(lambda: choices) if choices else None,
        # Switches have a column more, beside which the names of variables would not fit on a terminal.
        rich_help_panel=f"{panel(name)}: on or off" if is_switch else panel(name),
    )
    kind, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[bool | None, option]
    if not is_switch:
        annotation = Annotated[str | None, option]
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _value_type(annotation: Any) -> Any:
    """Return the type of a setting without None; `tuple` for all lists, and a `Literal` as it is."""
    if isinstance(annotation, UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    return tuple if get_origin(annotation) is tuple else annotation


def _choices(value_type: Any) -> list[str]:
    return [*get_args(value_type)] if get_origin(value_type) is Literal else []


def _bounds(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(item, name)}"
        for name, sign in _BOUNDS
        for item in field.metadata
        if hasattr(item, name)
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    return ("no", "yes")[default] if isinstance(default, bool) else format_default(name)
