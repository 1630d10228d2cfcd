"""Several fronts on one registry converge on one version and write the same status.

Two or three services, an `mlflow server` with its database in PostgreSQL, and a trigger there that notes each
time a tag is written, so that the test sees every write.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psycopg
import pytest

from benchmarks.postgres import Postgres
from serving.registry.live_tag import references
from tests.support.promotions import Callers, Model, ServedRegistry, Tracking
from tests.support.service import Service, served, until

# An MLflow server on a new database and three fronts take their time to start where tests share two cores.
pytestmark = pytest.mark.timeout(300)

AUDIT = """
CREATE TABLE noted (number serial, name text, version int, tag text, value text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO noted (name, version, tag, value) VALUES (NEW.name, NEW.version, NEW.key, NEW.value);
  RETURN NEW;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON model_version_tags FOR EACH ROW EXECUTE FUNCTION note();
"""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Fronts that serve one model by the same reference in one registry."""

    models: list[Model]
    registry: ServedRegistry
    database: str

    @property
    def name(self) -> str:
        return self.models[0].name

    def promote(self, version: str = "", **part: object) -> str:
        """Point the reference at a version, by default a new one that plays a part."""
        version = version or self.models[0].add(**part)
        if self.models[0].selector.startswith("@"):
            self.registry.alias(self.name, self.models[0].selector[1:], version)
        else:
            self.registry.promote(self.name, version)
        return version

    def until_live(self, version: str) -> None:
        for model in self.models:
            model.until_live(version)

    def settled(self) -> str:
        """Promote a new version and wait until it is live and tagged on every front."""
        version = self.promote()
        self.until_live(version)
        self.models[0].until_tagged(version, "live")
        return version

    def noted(self, version: str, tag: str) -> list[str]:
        """Return the values of a version's tag so far, without simultaneous duplicates of fronts."""
        query = "SELECT value FROM noted WHERE (name, version, tag) = (%s, %s, %s) ORDER BY number"
        with closing(psycopg.connect(self.database)) as connection:
            result = connection.execute(query, (self.name, int(version), f"serving.{tag}")).fetchall()
        return [value for (value,), _ in groupby(result)]

    def carriers(self) -> list[str]:
        """Return the versions whose tag `serving.live` names the reference."""
        uri = f"models:/{self.name}{self.models[0].selector}"
        result = self.registry.client.search_model_versions(f"name='{self.name}'")
        return [str(each.version) for each in result if uri in references(each.tags)]


def looks_until_seen(model: Model, version: str) -> int:
    """Return the number of polls that a front completed before it knew of a version."""
    looks: set[str] = set()

    def seen() -> bool:
        status = model.service.ready()
        state = status["models"][0]
        if version in (state["version"], (state["candidate"] or {}).get("version")):
            return True
        looks.add(status["registry"]["checked_at"])
        return False

    until(seen)
    return len(looks)


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.create("mlflow")


@pytest.fixture(scope="module")
def registry(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRegistry]:
    # With psycopg 3, MLflow compares integers with texts when it archives, which PostgreSQL refuses.
    uri = database.replace("postgresql:", "postgresql+psycopg2:")
    with Tracking(tmp_path_factory.mktemp("tracking"), uri) as server:
        with closing(psycopg.connect(database, autocommit=True)) as connection:
            connection.execute(AUDIT)
        yield server.registry


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest,
    registry: ServedRegistry,
    database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """Run fronts with a live version; of several on a stage, the last can't load some versions."""
    name, has = f"crew-{request.param[1:].lower()}", FRONTS[request.param]
    places = [tmp_path_factory.mktemp("front") for _ in has]

    def start(place: Path, own: dict[str, str]) -> Service:
        uri, model = registry.uri, f"models:/{name}{request.param}"
        return stack.enter_context(served(uri, place, models=model, poll_seconds=0.3, **own))

    with ExitStack() as stack, ThreadPoolExecutor() as starting:
        services = [*starting.map(start, places, has)]
        models = [Model(name, service, registry, request.param) for service in services]
        made = Fleet(models, registry, database)
        made.settled()
        yield made


FRONTS: dict[str, list[dict[str, str]]] = {
    "/Production": [{"_weights": "there", "model_env": "WEI*"}] * 2 + [{}],
    "@champion": [{}, {}],
}
BY_ALL = pytest.mark.parametrize("fleet", FRONTS, indirect=True)
BY_STAGE = pytest.mark.parametrize("fleet", ["/Production"], indirect=True)


@BY_ALL
def test_polling_fronts_follow_promotions_without_failed_requests(fleet: Fleet) -> None:
    first = fleet.settled()
    second = fleet.models[0].add()
    with ExitStack() as stack:
        callers = [stack.enter_context(Callers(model, count=1)) for model in fleet.models]
        for version in (second, first, second):
            fleet.promote(version)
            for model in fleet.models:
                # One poll that had already been requested, and one in progress.
                assert looks_until_seen(model, version) <= 2
            fleet.until_live(version)
            for each in callers:
                each.until_answered_by(version)
    for each in callers:
        assert each.faults == []
        assert each.versions == [int(first), int(second)]


@BY_ALL
def test_outcome_is_written_once_for_all_fronts(fleet: Fleet) -> None:
    first = fleet.settled()
    second = fleet.settled()
    fleet.models[0].until_tagged(first, "superseded")
    fleet.promote(first)
    fleet.until_live(first)
    for model in fleet.models:
        model.until_tagged(second, "superseded")
        model.until_tagged(first, "live")
    until(lambda: fleet.carriers() == [first])
    assert fleet.noted(first, "state") == ["live", "superseded", "live"]
    assert fleet.noted(second, "state") == ["live", "superseded"]


@BY_STAGE
def test_fronts_with_the_same_rejection_agree(fleet: Fleet) -> None:
    fleet.settled()
    bad = fleet.promote(on_load="raise:no_weights")
    reasons = {model.until_refused(bad) for model in fleet.models}
    status = fleet.models[0].until_tagged(bad, "rejected")
    assert {status["reason"]} == reasons
    assert fleet.noted(bad, "state") == ["rejected"]
    assert fleet.noted(bad, "reason") == [status["reason"]]


@BY_STAGE
def test_version_that_some_fronts_load_is_reported_live(fleet: Fleet) -> None:
    before = fleet.settled()
    demanding = fleet.promote(on_load="needs:WEIGHTS")
    *able, unable = fleet.models
    for model in able:
        model.until_live(demanding)
    reason = unable.until_refused(demanding)
    assert "WEIGHTS is not there" in reason
    assert unable.is_well(before)
    until(lambda: reason in unable.tags(demanding).get("reason", ""))
    # Two fronts that write at the same moment can undo each other's write; the next poll repairs it.
    orders = (["live"], ["rejected", "live"], ["live", "rejected", "live"])
    until(lambda: fleet.noted(demanding, "state") in orders)
    assert unable.until_tagged(demanding, "live")["since"]
    unable.until_tagged(before, "superseded")
    fleet.settled()


@BY_STAGE
def test_late_front_rejects_what_others_rejected(fleet: Fleet, tmp_path: Path) -> None:
    """Compare with the tags of the others in the registry only."""
    before = fleet.settled()
    breaking = fleet.promote(inputs="x: double, y: double", example=None)
    reasons = {model.until_refused(breaking) for model in fleet.models}
    fleet.models[0].until_tagged(breaking, "rejected")
    with served(fleet.registry.uri, tmp_path, models=f"models:/{fleet.name}/Production") as service:
        later = Model(fleet.name, service, fleet.registry, "/Production")
        reasons.add(later.until_refused(breaking))
        assert later.is_well(before)
    assert len(reasons) == 1
    fleet.settled()


@BY_ALL
def test_late_front_serves_the_rollback_version(fleet: Fleet, tmp_path: Path) -> None:
    first = fleet.settled()
    fleet.settled()
    fleet.promote(first)
    fleet.until_live(first)
    until(lambda: fleet.carriers() == [first])
    bad = fleet.promote(on_load="raise:broken")
    for model in fleet.models:
        model.until_refused(bad)
    selector = fleet.models[0].selector
    with served(fleet.registry.uri, tmp_path, models=f"models:/{fleet.name}{selector}") as service:
        later = Model(fleet.name, service, fleet.registry, selector)
        later.until_refused(bad)
        assert later.is_well(first)
    assert fleet.carriers() == [first]
    fleet.settled()


@BY_STAGE
def test_all_fronts_have_the_same_history(fleet: Fleet) -> None:
    first = fleet.settled()
    bad = fleet.promote(on_load="raise:broken")
    for model in fleet.models:
        model.until_refused(bad)
    last = fleet.settled()
    wanted = [(last, "live"), (bad, "rejected"), (first, "live")]
    for model in fleet.models:
        history = model.service.client.get(f"/models/{fleet.name}/history").json()
        assert [(each["version"], each["state"]) for each in history[:3]] == wanted
