"""The journal's database: its URL, migrations, what is deleted when, what is judged and told in MLflow."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from ledger import Ledger
from live import PROGRAM, until
from mlflow import MlflowClient
from promotions import Tracking
from sqlalchemy import insert, update
from uuid_utils import uuid7

from serving.errors import JournalAway
from serving.groups import journal_url
from serving.journal import database
from serving.journal.database import VERSION_TABLE, transaction
from serving.journal.frames import Frame, Kind
from serving.journal.link import Link
from serving.journal.quality import Quality
from serving.journal.reporter import Reporter
from serving.journal.schema import feedback, metadata, predictions, versions
from serving.journal.verdict import Misfit, Verdict, judge
from serving.registry.client import RegistryClient
from serving.runtime.outputs import Labels, Outputs, Probabilities, Regression, Values
from serving.runtime.values import Value
from serving.settings import Settings

NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    found: str = request.getfixturevalue("postgres").create(f"journal-{uuid7()}")
    return found


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    made = Ledger(url)
    yield made
    made.engine.dispose()


# -- the URL


@pytest.mark.parametrize(
    ("url", "mistake"),
    [
        ("journal.db", "it is no database URL: write sqlite:///file.db, or"),
        ("sqlite://", "a database in memory is lost with its process"),
        ("sqlite:///:memory:", "a database in memory is lost with its process"),
        ("sqlite:////nowhere/journal.db", "there is no folder /nowhere for the database"),
        ("mysql://me:hunter2@host/journal", "mysql is not spoken here"),
        ("postgresql+psycopg2://me:hunter2@host/journal", "postgresql+psycopg2 is not spoken here"),
        ("postgresql://me:hunter2@host:port/journal", "it is no database URL"),
    ],
)
def test_a_url_that_can_not_be_a_journals_is_told_without_its_password(url: str, mistake: str) -> None:
    with pytest.raises(ValueError, match="SERVING_JOURNAL_URL|journal_url") as caught:
        Settings(journal_url=url)
    assert mistake in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_a_wrong_url_ends_the_start_with_one_line() -> None:
    command = [PROGRAM, "run", "--journal-url", "mysql://me:hunter2@host/journal"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("✗ SERVING_JOURNAL_URL: mysql is not spoken here")
    assert "hunter2" not in line


# -- the tables


def test_the_migrations_make_the_tables_that_the_code_has(ledger: Ledger) -> None:
    database.upgrade(ledger.engine)
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_several_that_begin_at_once_migrate_one_after_the_other(ledger: Ledger, url: str) -> None:
    command = [PROGRAM, "journal", "upgrade", "--journal-url", url]
    with ThreadPoolExecutor() as pool:
        run = [pool.submit(subprocess.run, command, capture_output=True, text=True) for _ in range(3)]
        done = [each.result() for each in run]
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]
    assert ledger.count() == 0


def test_the_tables_of_a_later_release_are_left_alone(ledger: Ledger) -> None:
    database.upgrade(ledger.engine)
    with transaction(ledger.engine) as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = 'later'")
    with pytest.raises(JournalAway, match="another release"):
        database.upgrade(ledger.engine)


# -- the process


@asynccontextmanager
async def process(url: str, days: int) -> AsyncIterator[asyncio.Queue[Frame]]:
    """The journal's process, and what it tells."""
    heard: asyncio.Queue[Frame] = asyncio.Queue()
    opening = {"url": journal_url(url), "days": days, "logged": ["json", "info"]}
    link = Link(orjson.dumps(opening), heard.put_nowait)
    link.start()
    yield heard
    await link.aclose()


def fill(ledger: Ledger, ages: list[timedelta]) -> list[str]:
    """Predictions of these ages, each with feedback; gives their ids."""
    database.upgrade(ledger.engine)
    now = datetime.now(UTC)
    made = []
    for age in ages:
        random = UUID(str(uuid7())).int & ((1 << 80) - 1)
        made.append((str(UUID(int=(int((now - age).timestamp() * 1000) << 80) | random)), now - age))
    with transaction(ledger.engine) as connection:
        facts = {"id": 1, "model": "iris", "version": "1", "source": "here", "outputs": "{}"}
        connection.execute(insert(versions), facts)
        told = {"version": 1, "protocol": "predict", "rows": 1, "inputs": "[]", "outputs": "[]"}
        told |= {"latency": 0.1, "request_id": "mine"}
        connection.execute(insert(predictions), [told | {"id": each, "at": at} for each, at in made])
        outcomes = [{"prediction": each, "row": 0, "at": at, "outcome": "1"} for each, at in made]
        connection.execute(insert(feedback), outcomes)
    return [each for each, _ in made]


@pytest.mark.anyio
async def test_what_is_too_old_is_deleted_in_pieces_and_feedback_with_it(ledger: Ledger, url: str) -> None:
    new = [timedelta(minutes=1), timedelta(hours=23)]
    ids = fill(ledger, [*new, *[timedelta(days=2, seconds=index) for index in range(2500)]])
    async with process(url, 1):
        await asyncio.to_thread(until, lambda: ledger.count() == len(new))
    assert {*ledger.ids()} == {*ids[:2]}
    with transaction(ledger.engine) as connection:
        assert {row.prediction for row in connection.execute(feedback.select())} == {*ids[:2]}


@pytest.mark.anyio
async def test_what_other_fronts_heard_is_told_too(ledger: Ledger, url: str) -> None:
    fill(ledger, [timedelta(days=400)])
    at = datetime(2026, 1, 31, tzinfo=UTC)
    async with process(url, 0) as heard:
        for count in (1, 2):
            summed = {"feedback": count, "classed": count, "correct": 1, "feedback_at": at}
            with transaction(ledger.engine) as connection:
                connection.execute(update(versions).values(summed))
            frame = await asyncio.wait_for(heard.get(), 60)
            assert frame.kind is Kind.QUALITY
            (told,) = orjson.loads(frame.payload)
            assert Quality(**told).metrics == {"accuracy": 1 / count}
            assert told["at"] == at.timestamp() * 1000
    assert ledger.count() == 1  # which is kept for ever


# -- verdicts


CLASSES = ("no", "yes")


@pytest.mark.parametrize(
    ("outputs", "prediction", "outcome", "verdict"),
    [
        (Probabilities(CLASSES), {"prediction": 1, "label": "yes"}, "yes", Verdict(correct=True)),
        (Probabilities(CLASSES), {"prediction": 1, "label": "yes"}, 0, Verdict(correct=False)),
        (Labels(CLASSES, None), {"prediction": 0, "label": "no"}, 0, Verdict(correct=True)),
        (Regression(None), {"prediction": 2.5}, 2, Verdict(error=0.5)),
        (Regression(None), {"prediction": None}, 2, Verdict()),
        (Values((Value(None, "string"),)), {"prediction": "a"}, "b", Verdict(correct=False)),
        (Values((Value(None, "boolean"),)), {"prediction": True}, True, Verdict(correct=True)),
        (Values((Value(None, "number"),)), {"prediction": 1.0}, 3, Verdict(error=-2.0)),
        (Values((Value("a", "number"),)), {"prediction": {"a": [1.0, 2]}}, {"a": [3]}, Verdict()),
        (Values((Value(None, "any"),)), ["a", "stream"], {"any": "thing"}, Verdict()),
    ],
)
def test_a_prediction_is_judged_by_what_it_is(
    outputs: Outputs, prediction: Any, outcome: Any, verdict: Verdict
) -> None:
    assert judge(outputs, prediction, outcome) == verdict


@pytest.mark.parametrize(
    ("outputs", "prediction", "outcome"),
    [
        (Probabilities(CLASSES), {"prediction": 1}, "maybe"),
        (Probabilities(CLASSES), {"prediction": 1}, True),
        (Labels(CLASSES, None), {"prediction": 1}, 1.0),
        (Labels(CLASSES, None), {"prediction": 1}, -1),
        (Regression(None), {"prediction": 1.0}, "1"),
        (Regression(None), {"prediction": 1.0}, False),
        (Values((Value(None, "number"),)), {"prediction": 1.0}, True),
        (Values((Value("a", "number"),)), {"prediction": {"a": 1.0}}, {"b": 1.0}),
        (Values((Value(None, "number", (2,)),)), {"prediction": [1.0, 2.0]}, ["a"]),
    ],
)
def test_what_the_prediction_could_not_be_is_no_outcome(
    outputs: Outputs, prediction: Any, outcome: Any
) -> None:
    with pytest.raises(Misfit):
        judge(outputs, prediction, outcome)


# -- what is told in MLflow


def quality(run_id: str | None, count: int, accuracy: float) -> Quality:
    return Quality("iris", "1", None, run_id, 1000 * count, count, accuracy, None, None)


@pytest.mark.anyio
async def test_metrics_are_written_once_a_minute_and_at_the_end(registry: str) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    now = 0.0
    told = RegistryClient(Settings(tracking_uri=registry))
    reporter = Reporter(told, lambda: now)

    def written() -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run_id, "serving.accuracy")]

    reporter.tell([quality(run_id, 1, 1.0), quality(None, 1, 1.0), quality("gone", 1, 1.0)])
    await reporter.flush()
    reporter.tell([quality(run_id, 2, 0.5)])
    await reporter.flush()
    assert written() == [(1, 1.0)]
    now = 61.0
    await reporter.flush()
    reporter.tell([quality(run_id, 3, 1.0)])
    await reporter.flush()
    assert written() == [(1, 1.0), (2, 0.5)]
    await reporter.flush(now=True)
    assert written() == [(1, 1.0), (2, 0.5), (3, 1.0)]
    assert client.get_run(run_id).data.metrics == {"serving.accuracy": 1.0, "serving.feedback_count": 3.0}
    # Another front that shares the journal tells the very same, which is kept once.
    another = Reporter(told, lambda: now)
    another.tell([quality(run_id, 3, 1.0)])
    await another.flush()
    assert len(written()) == 3
    told.close()


@pytest.mark.anyio
async def test_what_the_registry_does_not_take_is_tried_again(tracking: Tracking) -> None:
    client = MlflowClient(tracking.url)
    run_id = client.create_run("0").info.run_id
    from line import Line, Mode

    with Line(tracking.url) as line:
        registry = RegistryClient(Settings(tracking_uri=line.url))
        reporter = Reporter(registry)
        line.switch(Mode.REFUSED)
        reporter.tell([quality(run_id, 1, 1.0)])
        await reporter.flush()
        assert client.get_run(run_id).data.metrics == {}
        line.switch(Mode.OPEN)
        await reporter.flush()
        registry.close()
    assert client.get_run(run_id).data.metrics == {"serving.accuracy": 1.0, "serving.feedback_count": 1.0}
