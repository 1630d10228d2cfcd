"""Redaction of secrets and control characters in texts for logs and responses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_HIDDEN = "***"
_WORDS = r"(?:pass(?:word|wd|phrase)|secret|token|(?:api|access|account|private)[-_]?key)"
_NAME = rf"(?:{_WORDS}(?:[-_](?:access[-_])?key)?|\bpwd(?==))"
_IS = r"""["']?\s{0,8}[:=]\s{0,8}(?:b(?=["'*]))?+"""
_VALUE = r"""(?!\*\*\*)(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^&\s]+)"""
_SCHEME = r"(?:(?:bearer|basic|digest|negotiate)\s+)"
_USER = r"[^/\s:@\[]*"
_SLASHED = r":(?!\d+/)\S{1,256}"
"""A password that may contain slashes, but not a port in front of a path."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern and its replacement, which are tried only if the text contains one of the hints."""

    hints: tuple[str, ...]
    find: re.Pattern[str]
    hidden: str


def _rule(hints: str, pattern: str, hidden: str = rf"\1{_HIDDEN}") -> _Rule:
    return _Rule(tuple(hints.split()), re.compile(pattern, re.IGNORECASE), hidden)


_RULES = (
    # User and password of a URL; both may contain at signs and slashes. In HTTP URLs, a port and a path look
    # the same as a password with a slash, and stay.
    _rule("//", rf"//(?:{_USER}@{_USER}{_SLASHED}|[^/\s]+|{_USER}{_SLASHED})@", f"//{_HIDDEN}@"),
    _rule("//", r"(?<!http:)(?<!https:)//[^/\s:@]*:\S{1,256}@", f"//{_HIDDEN}@"),
    # Headers, as text or as the repr of pairs.
    _rule(
        "authorization x-api-key cookie",
        rf"((?:authorization|x-api-key|cookie){_IS.replace(':=', ':=,')}){_SCHEME}?{_VALUE}",
    ),
    _rule("pass pwd= secret token key", rf"({_NAME}{_IS}){_VALUE}"),
    _rule("bearer", r"\b(bearer\s+)[\w.~+/=-]{6,}"),
    # API keys of this service, and others of that form.
    _rule("sk_ sk-", r"\b(sk[-_])[\w-]{16,}"),
    # Signatures of presigned URLs.
    _rule("sig credential=", r"((?:[?&]|x-\w{3,4}-)(?:signature|sig|credential)=)[^&\s'\"]+"),
)
_NAMED_SECRET = re.compile(
    rf"(?:^|[-_. ]){_WORDS}(?:[-_](?:access[-_])?key)?$|^(?:authorization|cookie)$", re.IGNORECASE
)
_MIN_SECRET_LENGTH = 6
"""Redacting shorter values would garble ordinary text."""


@lru_cache(1000)
def is_secret(name: str) -> bool:
    """Check whether a field or an environment variable of this name contains a secret."""
    return _NAMED_SECRET.search(name) is not None


def secrets_in_environment(variables: Mapping[str, str] = os.environ) -> list[str]:
    """Return the secrets in environment variables."""
    return [value for name, value in variables.items() if is_secret(name)]


class Redaction:
    """Redacts known secrets, and texts that look like a secret."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        longest_first = sorted(
            {secret for secret in known if len(secret) >= _MIN_SECRET_LENGTH}, key=len, reverse=True
        )
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known:
            text = self._known.sub(_HIDDEN, text)
        return redact(text)


def redact(text: str) -> str:
    """Return the text without passwords in URLs and without other texts that look like a secret."""
    lower = text.lower()
    for rule in _RULES:
        if any(hint in lower for hint in rule.hints):
            text = rule.find.sub(rule.hidden, text)
    return text


def escape_control_chars(text: str) -> str:
    """Return the text with unprintable characters escaped, as one line that is safe for a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )
