"""Takes out of a text what nobody may read in a log, and what a log or a terminal would take for its own."""

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
"""A password that may have slashes in it, and is no port before a path."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to look for, and what to put in its place; only where one of the hints is in the text at all."""

    hints: tuple[str, ...]
    find: re.Pattern[str]
    hidden: str


def _rule(hints: str, pattern: str, hidden: str = rf"\1{_HIDDEN}") -> _Rule:
    return _Rule(tuple(hints.split()), re.compile(pattern, re.IGNORECASE), hidden)


_RULES = (
    # The user, whose name may have an at sign in it, and the password of an address, whatever is in them; in
    # one of HTTP not a slash behind a port.
    _rule("//", rf"//(?:{_USER}@{_USER}{_SLASHED}|[^/\s]+|{_USER}{_SLASHED})@", f"//{_HIDDEN}@"),
    _rule("//", r"(?<!http:)(?<!https:)//[^/\s:@]*:\S{1,256}@", f"//{_HIDDEN}@"),
    # Headers, as text or as Python shows them in pairs.
    _rule(
        "authorization x-api-key cookie",
        rf"((?:authorization|x-api-key|cookie){_IS.replace(':=', ':=,')}){_SCHEME}?{_VALUE}",
    ),
    _rule("pass pwd= secret token key", rf"({_NAME}{_IS}){_VALUE}"),
    _rule("bearer", r"\b(bearer\s+)[\w.~+/=-]{6,}"),
    # This service's own keys, and others of that form.
    _rule("sk_ sk-", r"\b(sk[-_])[\w-]{16,}"),
    # Signatures of links to buckets.
    _rule("sig credential=", r"((?:[?&]|x-\w{3,4}-)(?:signature|sig|credential)=)[^&\s'\"]+"),
)
_NAMED_SECRET = re.compile(
    rf"(?:^|[-_. ]){_WORDS}(?:[-_](?:access[-_])?key)?$|^(?:authorization|cookie)$", re.IGNORECASE
)
_MIN_SECRET_LENGTH = 6
"""What is shorter than that is no secret, and taking it out would spoil what is none."""


@lru_cache(1000)
def is_secret(name: str) -> bool:
    """Whether something of this name is a secret: a field, or a variable of the environment."""
    return _NAMED_SECRET.search(name) is not None


def secrets_in_environment(variables: Mapping[str, str] = os.environ) -> list[str]:
    """The secrets in the variables of the environment."""
    return [value for name, value in variables.items() if is_secret(name)]


class Redaction:
    """Hides secrets in texts: those that are known, and whatever looks like one."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        longest_first = sorted(
            {each for each in known if len(each) >= _MIN_SECRET_LENGTH}, key=len, reverse=True
        )
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known:
            text = self._known.sub(_HIDDEN, text)
        return redact(text)


def redact(text: str) -> str:
    """A text in which addresses have no passwords, and nothing else that looks like a secret is left."""
    lower = text.lower()
    for rule in _RULES:
        if any(hint in lower for hint in rule.hints):
            text = rule.find.sub(rule.hidden, text)
    return text


def escape_control_chars(text: str) -> str:
    """A text of one line that does nothing to a terminal: what can't be printed is told by its number."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode("ascii")
        for each in text
    )
