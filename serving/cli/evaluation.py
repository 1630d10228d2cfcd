"""`serving check REFERENCE --evaluate`: evaluate a version against the rules of its model beforehand."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from serving.cli.check import check_reference
from serving.cli.console import escape, out
from serving.evaluation.evaluation_check import EvaluationCheck
from serving.evaluation.evidence import Evidence
from serving.evaluation.verdict import Decision, RuleResult
from serving.journal.evaluation_rows import reader
from serving.models.loaded_model import LoadedModel
from serving.models.slot import Slot
from serving.reference import Reference
from serving.registry import live_tag
from serving.registry.client import RegistryClient
from serving.registry.gate import Gate
from serving.settings.settings import Settings

_COLOURS = {Decision.HOLDS: "green", Decision.FAILS: "red", Decision.UNDECIDED: "yellow"}


async def evaluate_reference(
    settings: Settings, reference: Reference, progress: Callable[[str], None]
) -> tuple[LoadedModel, Evidence | None]:
    """Check a reference, and evaluate its version; return the evidence, or None if its model has no rules.

    The champion is the version that is live on the fronts, according to the tags.

    Raises:
        Rejected: the version would not go live.
        PromotionWaits: it would not go live yet.
        RegistryError: it cannot be checked.
    """
    found: list[Evidence] = []

    def publish(_: LoadedModel, evidence: Evidence) -> None:
        found.append(evidence)
        print_evidence(evidence)

    async def prepare(registry: RegistryClient, gate: Gate, number: str | None) -> LoadedModel | None:
        slot = Slot(_served(settings, reference))
        champion: LoadedModel | None = None
        others = [v for v in await registry.versions(reference.name, number) if v.version != number]
        if number and (version := live_tag.latest(others, slot.reference.uri)):
            progress(f"loading the champion, {version}")
            champion = await gate.load_and_verify(version, slot)
            slot.swap(champion, 0.0)
        outcomes = reader(settings.journal_url.get_secret_value()) if settings.journal_url else None
        gate.checks = [EvaluationCheck(settings, registry, lambda _: slot, publish, outcomes, repeats=True)]
        return champion

    loaded = await check_reference(settings, reference, progress, prepare)
    return loaded, found[-1] if found else None


def _served(settings: Settings, reference: Reference) -> Reference:
    """Return the reference under which the service serves the model."""
    if not reference.is_fixed:
        return reference
    return next((served for served in settings.models if served.name == reference.name), reference)


def print_evidence(evidence: Evidence) -> None:
    """Print the decisions about the rules as a table."""
    table = Table("rule", "decision", "value", "champion", "bounds", "rows", box=None, header_style="bold")
    for result in evidence.results:
        colour = _COLOURS.get(result.decision, "dim")
        numbers = [_number(result.value), _number(result.champion), _bounds(result)]
        table.add_row(escape(result.rule), f"[{colour}]{result.decision}[/]", *numbers, f"{result.rows:,}")
    out.print(table)
    against = f", compared with {evidence.champion}" if evidence.champion else ""
    confidence = f"each bound holds with {evidence.confidence:.4g} confidence"
    basis = f"{evidence.rows:,} labelled rows from {evidence.source}{against}; {confidence}"
    out.print(escape(basis), soft_wrap=True)


def _bounds(result: RuleResult) -> str:
    if result.low is None and result.high is None:
        return "–"
    kind = " (difference)" if result.champion is not None else ""
    return f"{_number(result.low)} to {_number(result.high)}{kind}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
