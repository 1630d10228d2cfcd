"""The journal's database: its URL, migrations, retention, feedback, and quality metrics in MLflow."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from mlflow import MlflowClient
from pyarrow import parquet
from sqlalchemy import insert, update
from uuid_utils import uuid7

from serving.codecs.output_json import OutputColumn
from serving.codecs.prediction_schema import (
    ClassLabels,
    GenericOutput,
    PredictionSchema,
    Probabilities,
    Regression,
)
from serving.errors import JournalUnavailable
from serving.journal import database, feedback_store
from serving.journal.database import VERSION_TABLE, transaction
from serving.journal.export import ExportFilter, export
from serving.journal.mlflow_metrics import MetricsReporter
from serving.journal.outcome_scores import InvalidOutcome, Score, score
from serving.journal.quality import Quality
from serving.journal.schema import feedback, metadata, predictions, versions
from serving.journal.writer import Writer
from serving.journal.writer_client import WriterClient
from serving.journal.writer_frames import Frame, FrameType
from serving.registry.client import RegistryClient
from serving.settings.parsing import parse_journal_url
from serving.settings.settings import Settings
from tests.support.journal_reader import JournalReader
from tests.support.promotions import Tracking
from tests.support.service import PROGRAM, until

NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    database_url: str = request.getfixturevalue("postgres").create(f"journal-{uuid7()}")
    return database_url


@pytest.fixture
def journal_reader(url: str) -> Iterator[JournalReader]:
    opened = JournalReader(url)
    yield opened
    opened.engine.dispose()


# -- the URL


@pytest.mark.parametrize(
    ("url", "mistake"),
    [
        ("journal.db", "not a database URL: write sqlite:///file.db or"),
        ("sqlite://", "an in-memory database does not outlive its process"),
        ("sqlite:///:memory:", "an in-memory database does not outlive its process"),
        ("sqlite:////nowhere/journal.db", "the folder /nowhere of the database does not exist"),
        ("mysql://me:hunter2@host/journal", "mysql is not supported"),
        ("postgresql+asyncpg://me:hunter2@host/journal", "postgresql+asyncpg is not supported"),
        ("postgresql://me:hunter2@host:port/journal", "not a database URL"),
    ],
)
def test_invalid_url_is_reported_without_its_password(url: str, mistake: str) -> None:
    with pytest.raises(ValueError, match="SERVING_JOURNAL_URL|journal_url") as caught:
        Settings(journal_url=url)
    assert mistake in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_invalid_url_fails_startup_with_one_line() -> None:
    command: list[Any] = [PROGRAM, "run", "--journal-url", "mysql://me:hunter2@host/journal"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("✗ SERVING_JOURNAL_URL: mysql is not supported")
    assert "hunter2" not in line


# -- the tables


def test_migrations_create_the_tables_of_the_code(journal_reader: JournalReader) -> None:
    database.upgrade(journal_reader.engine)
    with journal_reader.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_migration_keeps_float_sums(journal_reader: JournalReader) -> None:
    database.upgrade(journal_reader.engine, "0001")
    names = "id, model, source, outputs, feedback_at, feedback, measured, absolute, squared"
    rows = ("1, 'a', 'a', '', '2026-01-31', 2, 2, 3.0, 6.5", "2, 'b', 'b', '', '2026-01-30', 1, 1, 1.0, -8.0")
    with transaction(journal_reader.engine) as connection:
        for row in rows:
            connection.exec_driver_sql(f"INSERT INTO versions ({names}) VALUES ({row})")
    database.upgrade(journal_reader.engine)
    with transaction(journal_reader.engine) as connection:
        qualities = [each.metrics for each in feedback_store.model_qualities(connection)]
    errors = ("mean_absolute_error", "root_mean_squared_error")
    assert qualities == [dict(zip(errors, told, strict=True)) for told in [(1.5, 3.25**0.5), (1.0, 0.0)]]


def test_concurrent_migrations_run_one_at_a_time(journal_reader: JournalReader, url: str) -> None:
    command: list[Any] = [PROGRAM, "journal", "upgrade", "--journal-url", url]
    with ThreadPoolExecutor() as pool:
        run = partial(subprocess.run, command, capture_output=True, text=True)
        done = [each.result() for each in [pool.submit(run) for _ in range(3)]]
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]
    assert journal_reader.count() == 0


def test_tables_of_a_later_release_are_unchanged(journal_reader: JournalReader) -> None:
    database.upgrade(journal_reader.engine)
    with transaction(journal_reader.engine) as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = 'later'")
    with pytest.raises(JournalUnavailable, match="another release"):
        database.upgrade(journal_reader.engine)


# -- the process


@asynccontextmanager
async def process(url: str, days: int) -> AsyncIterator[asyncio.Queue[Frame]]:
    """Run the journal's process and collect its messages."""
    heard: asyncio.Queue[Frame] = asyncio.Queue()
    opening = {"url": parse_journal_url(url), "days": days, "logged": ["json", "info"], "quality": 0}
    link = WriterClient(orjson.dumps(opening), heard.put_nowait)
    link.start()
    yield heard
    await link.aclose()


def fill(journal_reader: JournalReader, ages: list[timedelta]) -> list[str]:
    """Write predictions of these ages with feedback; return their ids."""
    database.upgrade(journal_reader.engine)
    now = datetime.now(UTC)
    rows = []
    for age in ages:
        random = UUID(str(uuid7())).int & ((1 << 80) - 1)
        rows.append((str(UUID(int=(int((now - age).timestamp() * 1000) << 80) | random)), now - age))
    with transaction(journal_reader.engine) as connection:
        facts = {"id": 1, "model": "iris", "version": "1", "source": "here", "outputs": "{}"}
        connection.execute(insert(versions), facts)
        told = {"version": 1, "protocol": "predict", "rows": 1, "inputs": "[]", "outputs": "[]"}
        told |= {"latency": 0.1, "request_id": "mine"}
        connection.execute(insert(predictions), [told | {"id": each, "at": at} for each, at in rows])
        known = [{"prediction": each, "row": 0, "at": at, "outcome": "1"} for each, at in rows]
        connection.execute(insert(feedback), known)
    return [each for each, _ in rows]


@pytest.mark.anyio
async def test_old_predictions_are_deleted_in_batches_with_feedback(
    journal_reader: JournalReader, url: str
) -> None:
    new = [timedelta(minutes=1), timedelta(hours=23)]
    ids = fill(journal_reader, [*new, *[timedelta(days=2, seconds=index) for index in range(2500)]])
    async with process(url, 1):
        await asyncio.to_thread(until, lambda: journal_reader.count() == len(new))
    assert {*journal_reader.ids()} == {*ids[:2]}
    with transaction(journal_reader.engine) as connection:
        assert {row.prediction for row in connection.execute(feedback.select())} == {*ids[:2]}


@pytest.mark.anyio
async def test_feedback_of_other_fronts_is_reported(journal_reader: JournalReader, url: str) -> None:
    fill(journal_reader, [timedelta(days=400)])
    at = datetime(2026, 1, 31, tzinfo=UTC)
    async with process(url, 0) as heard:
        for count in (1, 2):
            summed = {"feedback": count, "classed": count, "correct": 1, "feedback_at": at}
            with transaction(journal_reader.engine) as connection:
                connection.execute(update(versions).values(summed))
            while (frame := await asyncio.wait_for(heard.get(), 60)).kind is not FrameType.QUALITY:
                assert orjson.loads(frame.payload) == {"failing": ""}
            (told,) = orjson.loads(frame.payload)
            assert Quality(**told).metrics == {"accuracy": 1 / count}
            assert told["at"] == at.timestamp() * 1000
    assert journal_reader.count() == 1  # which is kept for ever


@pytest.mark.parametrize("days", [0, 30])
def test_database_is_not_queried_between_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    ours, theirs = socket.socketpair()
    patience: list[float] = []

    def wait(reads: list[Any], writes: list[Any], errors: list[Any], seconds: float) -> tuple[list[Any], ...]:
        """Return no message three times, then end as the front does."""
        patience.append(seconds)
        if len(patience) == 3:
            ours.close()
        return reads if len(patience) == 3 else [], [], []

    monkeypatch.setattr("serving.journal.writer.select", SimpleNamespace(select=wait, poll=select.poll))
    with theirs:
        Writer(theirs, f"sqlite:///{tmp_path}/journal.db", days).run()
    assert patience[0] == 0  # the first look is due
    assert 0 < patience[2] <= patience[1] <= 1


def test_export_neither_waits_nor_blocks(journal_reader: JournalReader, url: str, tmp_path: Path) -> None:
    ids = fill(journal_reader, [timedelta(days=days) for days in (3, 2, 1)])
    file, now = tmp_path / "journal.parquet", datetime.now(UTC)
    reading = database.connect(parse_journal_url(url), reads=True)
    choice = ExportFilter(now - timedelta(days=2, hours=1), now - timedelta(days=1, hours=1))
    with transaction(journal_reader.engine) as writing:
        writing.execute(update(predictions).values(request_id="another"))
        assert export(reading, file, choice) == 1
    with transaction(reading) as connection:
        assert len([*connection.execute(predictions.select())]) == 3
        fill_one = insert(versions).values(id=2, model="other", source="there", outputs="{}")
        with transaction(journal_reader.engine) as writing:
            writing.execute(fill_one)
    reading.dispose()
    (line,) = parquet.read_table(file).to_pylist()
    assert (line["id"], line["request_id"]) == (ids[1], "mine")


# -- feedback


def regress(journal_reader: JournalReader, predicted: list[float]) -> str:
    """Write a numeric prediction of a version; return its id."""
    database.upgrade(journal_reader.engine)
    identity, form = str(uuid7()), orjson.dumps({"form": "Regression", "name": None}).decode()
    with transaction(journal_reader.engine) as connection:
        facts = {"id": 1, "model": "diabetes", "version": "1", "source": "here", "outputs": form}
        connection.execute(insert(versions), facts)
        outputs = orjson.dumps([{"prediction": each} for each in predicted]).decode()
        told = {"version": 1, "protocol": "batch", "rows": len(predicted), "inputs": "[]", "outputs": outputs}
        told |= {"id": identity, "at": datetime.now(UTC), "latency": 0.1, "request_id": "mine"}
        connection.execute(insert(predictions), told)
    return identity


def feed_back(journal_reader: JournalReader, identity: str, told: list[tuple[int, Any]]) -> dict[str, Any]:
    """Send outcomes of rows."""
    given = [{"prediction_id": identity, "row": row, "outcome": outcome} for row, outcome in told]
    with transaction(journal_reader.engine) as connection:
        return feedback_store.record_feedback(connection, {"feedback": given, "models": None})


def test_corrected_outcome_replaces_the_first(journal_reader: JournalReader) -> None:
    predicted = [7, *(0.1 * number for number in range(1, 400))]
    identity = regress(journal_reader, predicted)
    feed_back(journal_reader, identity, [(row, each + 1.3) for row, each in enumerate(predicted)])
    with transaction(journal_reader.engine) as connection:
        (before,) = feedback_store.model_qualities(connection)
    for wrong in (1754000000000, 1e150):
        # The last outcome of a row counts, in one message or in several.
        assert feed_back(journal_reader, identity, [(0, 0.5), (0, wrong)]) == {"recorded": 2}
        with transaction(journal_reader.engine) as connection:
            (now,) = feedback_store.model_qualities(connection)
        assert now.mean_absolute_error == pytest.approx(wrong / 400)
        feed_back(journal_reader, identity, [(0, 7 + 1.3)])
    with transaction(journal_reader.engine) as connection:
        (after,) = feedback_store.model_qualities(connection)
    assert after.metrics == before.metrics
    assert after.root_mean_squared_error == pytest.approx(1.3)
    assert after.feedback == 400


# -- verdicts


CLASSES = ("no", "yes")


@pytest.mark.parametrize(
    ("outputs", "prediction", "outcome", "verdict"),
    [
        (Probabilities(CLASSES), {"prediction": 1, "label": "yes"}, "yes", Score(correct=True)),
        (Probabilities(CLASSES), {"prediction": 1, "label": "yes"}, 0, Score(correct=False)),
        (ClassLabels(CLASSES, None), {"prediction": 0, "label": "no"}, 0, Score(correct=True)),
        (Regression(None), {"prediction": 2.5}, 2, Score(error=0.5)),
        (Regression(None), {"prediction": None}, 2, Score()),
        (GenericOutput((OutputColumn(None, "string"),)), {"prediction": "a"}, "b", Score(correct=False)),
        (GenericOutput((OutputColumn(None, "boolean"),)), {"prediction": True}, True, Score(correct=True)),
        (GenericOutput((OutputColumn(None, "number"),)), {"prediction": 1.0}, 3, Score(error=-2.0)),
        (GenericOutput((OutputColumn("a", "number"),)), {"prediction": {"a": [1.0, 2]}}, {"a": [3]}, Score()),
        (GenericOutput((OutputColumn(None, "any"),)), ["a", "stream"], {"any": "thing"}, Score()),
    ],
)
def test_verdict_depends_on_the_type_of_prediction(
    outputs: PredictionSchema, prediction: Any, outcome: Any, verdict: Score
) -> None:
    assert score(outputs, prediction, outcome) == verdict


@pytest.mark.parametrize(
    ("outputs", "prediction", "outcome"),
    [
        (Probabilities(CLASSES), {"prediction": 1}, "maybe"),
        (Probabilities(CLASSES), {"prediction": 1}, True),
        (ClassLabels(CLASSES, None), {"prediction": 1}, 1.0),
        (ClassLabels(CLASSES, None), {"prediction": 1}, -1),
        (Regression(None), {"prediction": 1.0}, "1"),
        (Regression(None), {"prediction": 1.0}, False),
        (GenericOutput((OutputColumn(None, "number"),)), {"prediction": 1.0}, True),
        (GenericOutput((OutputColumn("a", "number"),)), {"prediction": {"a": 1.0}}, {"b": 1.0}),
        (GenericOutput((OutputColumn(None, "number", (2,)),)), {"prediction": [1.0, 2.0]}, ["a"]),
    ],
)
def test_impossible_outcome_is_invalid(outputs: PredictionSchema, prediction: Any, outcome: Any) -> None:
    with pytest.raises(InvalidOutcome):
        score(outputs, prediction, outcome)


# -- metrics in MLflow


def quality(run_id: str | None, count: int, accuracy: float) -> Quality:
    return Quality("iris", "1", None, run_id, f"of-{run_id}", 1000 * count, count, accuracy, None, None)


@pytest.mark.anyio
async def test_metrics_are_written_once_a_minute_and_at_the_end(registry: str) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    now = 0.0
    told = RegistryClient(Settings(tracking_uri=registry))
    reporter = MetricsReporter(told, lambda: now)

    def written() -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run_id, "serving.accuracy")]

    reporter.enqueue([quality(run_id, 1, 1.0), quality(None, 1, 1.0), quality("gone", 1, 1.0)])
    await reporter.flush()
    reporter.enqueue([quality(run_id, 2, 0.5)])
    await reporter.flush()
    assert written() == [(1, 1.0)]
    now = 61.0
    await reporter.flush()
    reporter.enqueue([quality(run_id, 3, 1.0)])
    await reporter.flush()
    assert written() == [(1, 1.0), (2, 0.5)]
    await reporter.flush(now=True)
    assert written() == [(1, 1.0), (2, 0.5), (3, 1.0)]
    assert client.get_run(run_id).data.metrics == {"serving.accuracy": 1.0, "serving.feedback_count": 3.0}
    # Another front that shares the journal sends the same metrics, which are stored once.
    another = MetricsReporter(told, lambda: now)
    another.enqueue([quality(run_id, 3, 1.0)])
    await another.flush()
    assert len(written()) == 3
    told.close()


@pytest.mark.anyio
async def test_permanently_failing_write_does_not_block_others(registry: str) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    told = RegistryClient(Settings(tracking_uri=registry))
    reporter = MetricsReporter(told)
    of_no_model = replace(quality(run_id, 9, 0.0), version="0", model_id="m-none")
    of_one_run = replace(quality(run_id, 2, 0.5), model="another")
    reporter.enqueue([of_no_model, quality(run_id, 1, 1.0), of_one_run])
    for _ in range(2):
        await reporter.flush()
    points = client.get_metric_history(run_id, "serving.accuracy")
    assert {(point.step, point.value) for point in points} >= {(1, 1.0), (2, 0.5)}
    told.close()


@pytest.mark.anyio
async def test_failed_registry_write_is_retried(tracking: Tracking) -> None:
    client = MlflowClient(tracking.url)
    run_id = client.create_run("0").info.run_id
    from tests.support.faulty_proxy import FaultyProxy, Mode

    with FaultyProxy(tracking.url) as proxy:
        registry = RegistryClient(Settings(tracking_uri=proxy.url))
        reporter = MetricsReporter(registry)
        proxy.switch(Mode.REFUSED)
        reporter.enqueue([quality(run_id, 1, 1.0)])
        await reporter.flush()
        assert client.get_run(run_id).data.metrics == {}
        proxy.switch(Mode.OPEN)
        await reporter.flush()
        registry.close()
    assert client.get_run(run_id).data.metrics == {"serving.accuracy": 1.0, "serving.feedback_count": 1.0}
