"""Masks addresses in messages of registries, artifact stores and their libraries.

Clients read some of these messages. A list of phrases in which libraries name an address is never complete,
so texts are masked by their form: what looks like the name of a host, an account, a bucket or a file is
replaced. The words that name the cause have another form, and stay.
"""

from __future__ import annotations

import re

from serving.text import shorten

_MASK = "…"
_MAX_LENGTH = 20_000
_PAGE = re.compile(
    r"<(?:!doctype|html|head|body|title|meta|center|div|h[1-6]|p)\b.*", re.IGNORECASE | re.DOTALL
)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_END = r"\s'\"<>()\[\]{},;"
_LABEL = r"[\w-]{1,63}"
_HEX = r"[0-9a-f]{1,4}"


def _rule(pattern: str, masked: str = _MASK) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), masked


_RULES = (
    # URLs, and names of resources at AWS.
    _rule(rf"\b[a-z][a-z0-9+.-]{{0,30}}://[^\s'\"<>)\]]+|\barn:[^{_END}]+"),
    # Paths in quotation marks, which may contain spaces.
    _rule(r"'(?:/|~/)[^']*'|\"(?:/|~/)[^\"]*\"", f"'{_MASK}'"),
    # The names of a database, a user, an account or a bucket, as in a connection string.
    _rule(
        r"\b((?:host(?:name|addr)?|server|port|user(?:name)?|dbname|database|account|bucket|endpoint)\s?=\s?)"
        r"(?:'[^']*'|\"[^\"]*\"|[^\s,;)]+)",
        rf"\1{_MASK}",
    ),
    _rule(r"\b(port )\d+", rf"\1{_MASK}"),
    # One word in quotation marks, except numbers, names of settings, and names in Python code.
    _rule(
        r"(?<!module named )(?<!attribute )(?<!argument )(?<!parameter )(?<!column )(?<!\w)"
        r"(?!'\w+' object\b)(?!['\"](?:\d+|(?-i:[A-Z0-9]+(?:_[A-Z0-9]+)+))['\"])"
        r"(?:'[^'\s]{1,500}'|\"[^\"\s]{1,500}\")",
        f"'{_MASK}'",
    ),
    # Users at hosts.
    _rule(rf"[^{_END}@]{{1,256}}@[^{_END}]+"),
    # IP addresses.
    _rule(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?:[:/]\d+)?(?![\w.]*\w)"),
    _rule(
        rf"(?<![\w:])\[?(?:(?:{_HEX}:){{7}}{_HEX}|(?:{_HEX}(?::{_HEX}){{0,6}})?::(?:{_HEX}(?::{_HEX}){{0,6}})?"
        rf"{_MASK}?)(?:%\w+)?\]?(?::\d+)?(?![\w:])"
    ),
    # Names with dots, except numbers, abbreviations and classes of exceptions; and names with a port.
    _rule(
        rf"\b(?!\d+(?:\.\d+)+\w{{0,3}}\b)(?!(?:e\.g|i\.e|pg_hba\.conf)\b)(?=[\w.-]{{0,253}}[a-z])"
        rf"(?!(?:{_LABEL}\.){{1,9}}\w{{0,63}}(?:Error|Exception|Timeout)\b)"
        rf"(?:{_LABEL}(?:\.{_LABEL})+(?::\d+)?(?:/[^{_END}]*)?|{_LABEL}:\d{{2,5}}\b)"
    ),
    # Paths, except those of MLflow's API.
    _rule(rf"(?<![\w{_MASK}/.])(?:/|~/)(?!(?:ajax-)?api/\d)[^{_END}:]+"),
    # Names without quotation marks that follow one of these phrases.
    _rule(
        r"\b((?:connect(?:ion|ed|ing)?|tunnel) to (?:host |server )?|(?:unknown|resolve|find) host:? )"
        r"(?!(?:the|server|proxy|a|an|host|port|your|any|all|at|on|mysql)\b)[\w-]+",
        rf"\1{_MASK}",
    ),
)


def public(text: str) -> str:
    """Return a message without addresses, and with the title of a page in place of the page."""
    text = shorten(text, _MAX_LENGTH)
    title = ""
    if page := _PAGE.search(text):
        found = _TITLE.search(page[0])
        title = f"a page with the title '{_masked(found[1].strip())}'" if found else "a page"
        text = text[: page.start()]
    return _masked(text) + title


def _masked(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
