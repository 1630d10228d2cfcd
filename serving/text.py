"""Texts of bounded length, and the commands that install optional packages."""

from __future__ import annotations

_CUT = " … "


def shorten(text: str, max_length: int) -> str:
    """Return the text in at most `max_length` characters; a long text loses its middle.

    The beginning states what failed, and the end states the cause, so both stay; the end gets two thirds.
    """
    if len(text) <= max_length:
        return text
    kept = max(max_length - len(_CUT), 0)
    head = kept // 3
    return (text[:head] + _CUT + text[len(text) - (kept - head) :])[:max_length]


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package by its name, without a checkout."""
    return f"pip install 'mlflow-serving-front[{extra}]'"
