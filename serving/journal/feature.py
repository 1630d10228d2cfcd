"""Registers the journal and the feedback endpoint with the service."""

from __future__ import annotations

from serving.feature_interface import Core, Feature, Task
from serving.http.endpoints import feedback
from serving.http.readiness import StatusSource
from serving.journal import evaluation_rows
from serving.journal.observer import JournalObserver
from serving.journal.quality import QualityFields


def create(core: Core) -> list[Feature]:
    """Return the feature; without `SERVING_JOURNAL_URL`, `/feedback` responds that there is no journal."""
    settings = core.settings
    if not settings.journal_url:
        return [
            Feature(
                status=StatusSource(QualityFields), routes=lambda reporter: feedback.router(None, settings)
            )
        ]
    journal = JournalObserver(settings, core.metrics, core.registry, core.supervisor, core.outcomes)
    core.outcome_readers.append(evaluation_rows.reader(settings.journal_url.get_secret_value()))
    return [
        Feature(
            hooks=[journal],
            tasks=[
                Task("journal", journal.run),
                *([Task("quality runs", journal.runs.run)] if journal.runs else []),
            ],
            status=StatusSource(QualityFields, journal.status),
            routes=lambda reporter: feedback.router(journal, settings),
            aclose=journal.aclose,
        )
    ]
