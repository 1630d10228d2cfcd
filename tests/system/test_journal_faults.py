"""Faults of the journal's database or writer do not affect predictions; all are counted."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.postgres import Postgres
from tests.service.test_http_service import SECRET, problem
from tests.support.faulty_proxy import FaultyProxy, Mode
from tests.support.journal_reader import JournalReader, measured, recorded
from tests.support.process_ids import Watch, children
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, environment, served, until

Trouble = Callable[[], AbstractContextManager[None]]
ROW = {"x": 21}


@pytest.fixture(scope="module")
def registry_of_actor(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(new_registry(tmp_path_factory.mktemp("actor")))
    registry.add("actor", factor=2.0)
    return registry


@contextmanager
def journaling(registry: Registry, folder: Path, url: str) -> Iterator[Service]:
    """Start a service, and wait until it records."""
    settings = {"models": "models:/actor/1", "journal_url": url, "deadline_seconds": 5, "drain_seconds": 5}
    with served(registry.uri, folder, **settings) as service:
        service.until_ready()
        recorded(predict(service))
        until(lambda: measured(service, "written")[0])
        yield service


def predict(service: Service, row: dict[str, Any] = ROW) -> Any:
    answer = service.client.post("/predict", json=row)
    assert answer.json()["prediction"] == 42.0
    return answer


class Stand:
    """A service, its journal's database, and the faults that a test can cause in it."""

    def __init__(
        self, service: Service, journal_reader: JournalReader, troubles: dict[str, Trouble], answered: int = 1
    ) -> None:
        self.service, self.journal_reader, self.troubles = service, journal_reader, troubles
        self.answered = answered

    def predict(self, count: int, row: dict[str, Any] = ROW) -> list[str]:
        """Request `count` predictions and return their ids."""
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda _: predict(self.service, row), range(count))]
        self.answered += count
        return [*map(recorded, answers)]

    def until_counted(self) -> tuple[int, int]:
        """Return the numbers of written and dropped predictions, once none is pending."""

        def settled() -> tuple[int, int] | None:
            written, dropped, pending = measured(self.service, "written", "dropped", "pending")
            assert written + dropped + pending == self.answered
            return None if pending else (written, dropped)

        return until(settled)


@pytest.fixture(scope="module")
def on_sqlite(registry_of_actor: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("sqlite")
    file = folder / "journal.db"
    journal_reader = JournalReader(f"sqlite:///{file}")

    @contextmanager
    def locked() -> Iterator[None]:
        with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield

    with journaling(registry_of_actor, folder, f"sqlite:///{file}") as service:
        yield Stand(service, journal_reader, {"locked": locked})


@pytest.fixture(scope="module")
def on_postgres(
    registry_of_actor: Registry, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    url = postgres.create("faults")
    journal_reader = JournalReader(url)

    @contextmanager
    def locked() -> Iterator[None]:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE predictions")
            yield

    @contextmanager
    def stopped() -> Iterator[None]:
        journal_reader.engine.dispose()
        postgres.stop()
        yield
        postgres.start()

    with FaultyProxy(f"http://127.0.0.1:{postgres.port}") as proxy:
        through = f"postgresql://serving:{SECRET}@127.0.0.1:{proxy.url.rpartition(':')[2]}/faults"
        folder = tmp_path_factory.mktemp("postgres")
        with journaling(registry_of_actor, folder, through) as service:
            troubles: dict[str, Trouble] = {
                "slow": locked,
                "stopped": stopped,
                "refused": lambda: proxy.cut(Mode.REFUSED),
                "black-holed": lambda: proxy.cut(Mode.BLACK_HOLED),
            }
            yield Stand(service, journal_reader, troubles)
            assert SECRET not in "\n".join(service.log)
    journal_reader.engine.dispose()


@pytest.mark.parametrize(
    ("where", "trouble"),
    [
        ("on_sqlite", "locked"),
        ("on_postgres", "slow"),
        ("on_postgres", "stopped"),
        ("on_postgres", "refused"),
        ("on_postgres", "black-holed"),
    ],
)
def test_row_23_database_fault_loses_no_prediction(
    request: pytest.FixtureRequest, where: str, trouble: str
) -> None:
    stand: Stand = request.getfixturevalue(where)
    service = stand.service
    _, dropped = stand.until_counted()
    with stand.troubles[trouble]():
        identities = stand.predict(100)
        assert measured(service, "pending") == [100]
        assert SECRET not in service.client.get("/status").text
        answer = service.client.post("/feedback", json={"prediction_id": identities[0], "outcome": 1.0})
        assert problem(answer, 503)
        assert answer.headers["retry-after"] == "5"
        if trouble != "slow":
            until(lambda: measured(service, "failing")[0])
        assert service.client.get("/ready").status_code == 200
    written = stand.answered - dropped
    assert stand.until_counted() == (written, dropped)
    assert {*identities} <= {*stand.journal_reader.ids()}
    assert stand.journal_reader.count() == written
    assert measured(service, "failing") == [0]
    answer = service.client.post("/feedback", json={"prediction_id": identities[0], "outcome": 1.0})
    assert answer.json() == {"recorded": 1}


def test_killed_journal_writer_loses_no_prediction(on_sqlite: Stand) -> None:
    _, dropped = on_sqlite.until_counted()
    identities: list[str] = []
    for _ in range(3):
        killed = writer(on_sqlite.service)
        identities += on_sqlite.predict(50)
        os.kill(killed, signal.SIGKILL)
        identities += on_sqlite.predict(50)
        until(lambda killed=killed: writer(on_sqlite.service) not in (0, killed))  # type: ignore[misc]
    written = on_sqlite.answered - dropped
    assert on_sqlite.until_counted() == (written, dropped)
    assert len({*identities}) == 300
    assert {*identities} <= {*on_sqlite.journal_reader.ids()}
    assert on_sqlite.journal_reader.count() == written


def test_row_58_stopped_journal_writer_is_replaced_without_loss(on_sqlite: Stand) -> None:
    _, dropped = on_sqlite.until_counted()
    stopped = writer(on_sqlite.service)
    os.kill(stopped, signal.SIGSTOP)
    identities = on_sqlite.predict(50)
    until(lambda: writer(on_sqlite.service) not in (0, stopped))
    written = on_sqlite.answered - dropped
    assert on_sqlite.until_counted() == (written, dropped)
    assert {*identities} <= {*on_sqlite.journal_reader.ids()}
    assert on_sqlite.journal_reader.count() == written


def test_predictions_wait_for_a_full_disk(on_sqlite: Stand) -> None:
    _, dropped = on_sqlite.until_counted()
    before = resource.prlimit(writer(on_sqlite.service), resource.RLIMIT_FSIZE)
    resource.prlimit(writer(on_sqlite.service), resource.RLIMIT_FSIZE, (0, before[1]))
    identities = on_sqlite.predict(50)
    until(lambda: measured(on_sqlite.service, "failing")[0])
    assert on_sqlite.service.client.get("/ready").status_code == 200
    resource.prlimit(writer(on_sqlite.service), resource.RLIMIT_FSIZE, before)
    written = on_sqlite.answered - dropped
    assert on_sqlite.until_counted() == (written, dropped)
    assert {*identities} <= {*on_sqlite.journal_reader.ids()}


def test_writer_killed_during_database_fault_recovers(
    on_sqlite: Stand,
) -> None:
    service = on_sqlite.service
    with on_sqlite.troubles["locked"]():
        (identity,) = on_sqlite.predict(1)
        until(lambda: measured(service, "failing")[0])
        killed = writer(service)
        os.kill(killed, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)  # before it reports that the database is available again
    until(lambda: not measured(service, "failing")[0])
    answer = service.client.post("/feedback", json={"prediction_id": identity, "outcome": 1.0})
    assert answer.json() == {"recorded": 1}


def writer(service: Service) -> int:
    """Return the pid of the journal writer, or 0."""
    for pid in children(service.process.pid):
        try:
            if b"serving.journal.writer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:  # the process has ended
            continue
    return 0


def test_row_23_full_queue_drops_and_counts_predictions(on_sqlite: Stand) -> None:
    written, dropped = on_sqlite.until_counted()
    with on_sqlite.troubles["locked"]():
        identities = {*on_sqlite.predict(24, ROW | {"act": "a" * 4 * 2**20})}
        (pending,) = measured(on_sqlite.service, "pending")
        assert pending == 15  # the number that fits into 64 MB
    assert on_sqlite.until_counted() == (written + 15, dropped + 9)
    lost = identities - {*on_sqlite.journal_reader.ids()}
    assert len(lost) == 9
    outcome = {"prediction_id": lost.pop(), "outcome": 1.0}
    assert problem(on_sqlite.service.client.post("/feedback", json=outcome), 404)
    on_sqlite.predict(3)
    assert on_sqlite.until_counted() == (written + 18, dropped + 9)


def test_row_22_stop_writes_all_predictions(on_sqlite: Stand) -> None:
    _, dropped = on_sqlite.until_counted()
    with Watch([writer(on_sqlite.service)]) as watch:
        identities = on_sqlite.predict(200)
        assert on_sqlite.service.stop() == 0
        assert not watch.left()
    assert {*identities} <= {*on_sqlite.journal_reader.ids()}
    assert on_sqlite.journal_reader.count() == on_sqlite.answered - dropped


def test_row_22_stop_limits_wait_for_database(on_postgres: Stand) -> None:
    on_postgres.until_counted()
    with on_postgres.troubles["slow"](), Watch([writer(on_postgres.service)]) as watch:
        on_postgres.predict(7)
        assert on_postgres.service.stop() == 0
        assert not watch.left()
    event = "7 predictions could not be recorded before the stop"
    assert [line for line in on_postgres.service.lines() if line["event"] == event]


def test_row_24_killed_front_loses_only_unsent_predictions(
    registry_of_actor: Registry, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    env = environment(registry_of_actor.uri, tmp_path, models="models:/actor/1", journal_url=url)
    service = Service(env, tmp_path)
    try:
        service.until_ready()
        stand = Stand(service, JournalReader(url), {}, answered=0)
        sent = stand.predict(100)
        assert stand.until_counted() == (100, 0)
        with Watch([writer(service)]) as watch:
            unsent = stand.predict(20)
            service.process.kill()
            assert not watch.left()
        written = stand.journal_reader.ids()
        assert {*sent} <= {*written} <= {*sent, *unsent}
    finally:
        service.process.kill()
        service.stop()
