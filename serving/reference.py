"""Parses model references such as `models:/iris/Production`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from serving.errors import InvalidReference

FORMS = (
    "models:/iris/Production (stage), models:/iris@champion (alias), models:/iris/3 (version), "
    "models:/iris/latest, or models:/m-… (a logged model's id)"
)
STAGES = {stage.lower(): stage for stage in ("Production", "Staging", "Archived", "None")}

_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<selector>[^/@:]+)|@(?P<alias>[^/@:]+))?")
_WEIGHTED = re.compile(r"(?P<uri>.*[/@][^/@=]*)=(?P<weight>[^/@]*)")
_WEIGHT = re.compile(r"\d{1,9}(\.\d{1,9})?")
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


class ReferenceKind(StrEnum):
    """How a reference selects a version."""

    STAGE = "stage"
    ALIAS = "alias"
    VERSION = "version"
    LATEST = "latest"
    MODEL_ID = "model id"


@dataclass(frozen=True, slots=True)
class Reference:
    """One parsed model reference; `str()` returns its URI."""

    uri: str
    name: str
    kind: ReferenceKind
    selector: str
    weight: float | None = None
    """Its share of the requests to its model if several references share them; relative to the others."""

    @classmethod
    def parse_weighted(cls, text: str) -> Reference:
        """Parse a `models:/` URI with an optional weight, such as `models:/iris@challenger=5`.

        Raises:
            InvalidReference: It has none of the forms in `FORMS`.
        """
        match = _WEIGHTED.fullmatch(text.strip())
        if match is None:
            return cls.parse(text)
        if not _WEIGHT.fullmatch(match["weight"]):
            raise InvalidReference(f"{text!r}: a weight is a number, as in models:/iris@challenger=5")
        return replace(cls.parse(match["uri"]), weight=float(match["weight"]))

    @classmethod
    def parse(cls, uri: str) -> Reference:
        """Parse a `models:/` URI.

        Raises:
            InvalidReference: It has none of the forms in `FORMS`.
        """
        match = _URI.fullmatch(uri.strip())
        if match is None:
            raise InvalidReference(f"{uri!r} is not a model reference: write {FORMS}")
        name, selector, alias = match["name"], match["selector"], match["alias"]
        if alias is not None:
            return cls(match[0], name, ReferenceKind.ALIAS, alias)
        if selector is None:
            # MLflow reads `models:/iris` as the id of a logged model, but ids have another form.
            if not _MODEL_ID.fullmatch(name):
                raise InvalidReference(f"{uri!r} names a model but no version: write {FORMS}")
            return cls(match[0], name, ReferenceKind.MODEL_ID, name)
        return cls(match[0], name, *_selected(uri, selector))

    @property
    def is_fixed(self) -> bool:
        """Return whether changes in the registry cannot affect it; tags affect a reference with a weight."""
        return self.kind in (ReferenceKind.VERSION, ReferenceKind.MODEL_ID) and self.weight is None

    def __str__(self) -> str:
        return self.uri


def _selected(uri: str, selector: str) -> tuple[ReferenceKind, str]:
    if selector.isascii() and selector.isdigit():
        return ReferenceKind.VERSION, str(int(selector))
    if selector.lower() == "latest":
        return ReferenceKind.LATEST, "latest"
    if stage := STAGES.get(selector.lower()):
        return ReferenceKind.STAGE, stage
    stages = ", ".join(STAGES.values())
    raise InvalidReference(f"{uri!r}: {selector!r} is not a stage ({stages}): write {FORMS}")
