"""Metrics of a real service, and their use in the dashboard, the alerts and the documentation."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.registry.decisions import CandidatePhase
from serving.telemetry import event_loop_lag
from serving.telemetry.metrics import ExitReason, Gauges, Metrics
from tests.support import prometheus_server, promql
from tests.support.process_ids import descendants
from tests.support.prometheus_server import found
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import served, until

ROOT = Path(__file__).parents[2]
OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to all scraped samples."""


@pytest.fixture(scope="module")
def model(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Run a live actor, a model with a canary and a shadow, and an on-demand model."""
    folder = tmp_path_factory.mktemp("metrics")
    registry = Registry(new_registry(folder))
    registry.promote("actor", registry.add("actor", factor=1.0))
    profile = {"rows": 1000, "inputs": {"x": {"edges": [0.0], "shares": [0.5, 0.5]}}}
    metadata = {"serving": {"profile": profile}}
    first, second = (registry.add("rose", factor=factor, metadata=metadata) for factor in (1.0, 2.0))
    registry.alias("rose", "champion", first)
    registry.alias("rose", "challenger", second)
    registry.promote("rose", second, "Staging")
    models = "models:/actor/Production,models:/rose@champion=50,models:/rose@challenger=50"
    settings = {"models": models, "shadow": "models:/rose/Staging", "on_demand": "models:/tulip/Production"}
    settings |= {"journal_url": f"sqlite:///{folder}/journal.db"}
    settings |= {"probation_seconds": "0", "max_process_bytes": str(2**40), "replay_requests": "0"}
    settings |= {"poll_seconds": "0.5"}
    with served(registry.uri, folder, **settings) as service:
        service.until_ready()
        yield Model("actor", service, registry)


def sample(name: str, **labels: str) -> str:
    """Return the name and the labels of a sample in text format."""
    text = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{text}}}" if text else name


def of(model: Model, name: str, **labels: str) -> str:
    """Return the same as `sample`, for the live version."""
    return sample(name, model=model.name, version=model.state["version"], **labels)


@contextmanager
def moved(model: Model) -> Iterator[dict[str, float]]:
    """Yield the changes of the model's metrics during the block, without times."""
    before = model.service.metrics()
    changes: dict[str, float] = {}
    yield changes
    for name, value in model.service.metrics().items():
        counted = 'model="actor"' in name and not re.search(r"_bucket|seconds_sum|_bytes|timestamp", name)
        if counted and (by := value - before.get(name, 0)):
            changes[name] = by


# -- changes


def test_requests_and_model_calls_are_counted_and_timed(model: Model) -> None:
    with moved(model) as changes:
        assert model.predict().status_code == 200
        rows = {"rows": [{"x": 1.0}] * 5}
        assert model.service.client.post("/predict/batch", json=rows).status_code == 200
    assert changes == {
        of(model, "serving_requests_total", code="200"): 2,
        of(model, "serving_request_duration_seconds_count"): 2,
        of(model, "serving_rows_total"): 6,
        of(model, "serving_batch_rows_sum"): 6,
        of(model, "serving_batch_rows_count"): 2,
        of(model, "serving_queue_duration_seconds_count"): 2,
        of(model, "serving_model_duration_seconds_count"): 2,
    }


def test_invalid_request_changes_only_its_count(model: Model) -> None:
    with moved(model) as changes:
        assert model.service.client.post("/predict", json={"x": "one"}).status_code == 422
    assert changes == {of(model, "serving_requests_total", code="422"): 1}


def test_failed_model_calls_are_timed(model: Model) -> None:
    with moved(model) as changes:
        assert model.predict(1.0, "raise:oh").status_code == 500
    assert changes[of(model, "serving_requests_total", code="500")] == 1
    assert changes[of(model, "serving_model_duration_seconds_count")] == 1


def test_queue_and_model_times_are_separate(model: Model, tmp_path: Path) -> None:
    queued, took = (of(model, f"serving_{each}_duration_seconds_sum") for each in ("queue", "model"))
    waiting, in_flight = of(model, "serving_waiting_requests"), of(model, "serving_inflight_requests")
    before, pipe = model.service.metrics(), tmp_path / "pipe"
    assert (before[waiting], before[in_flight]) == (0, 0)
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(model.predict, 1.0, f"wait:{pipe}")
        with pipe.open("w"):  # returns when the model has opened it, too
            began = time.perf_counter()
            waits = pool.submit(model.predict)
            until(lambda: model.service.metrics()[waiting] == 1)
            assert model.service.metrics()[in_flight] == 2
            seconds = time.perf_counter() - began
        assert [held.result().status_code, waits.result().status_code] == [200, 200]
    after = model.service.metrics()
    assert (after[waiting], after[in_flight]) == (0, 0)
    assert after[took] - before[took] >= seconds / 2
    assert after[queued] - before[queued] > 0


def test_promotion_updates_the_live_version(model: Model) -> None:
    def live() -> list[tuple[str, ...]]:
        infos = [name for name in model.service.metrics() if name.startswith("serving_model_info")]
        samples = [name for name in infos if 'model="actor"' in name]
        return [tuple(re.findall(r'(?:version|uri|digest)="(.*?)"', name)) for name in samples]

    def facts() -> tuple[str, ...]:
        return model.state["digest"], model.state["uri"], model.state["version"]

    before = model.service.metrics()
    went_live = sample("serving_promotions_total", model="actor", uri=model.state["uri"], outcome="live")
    old = of(model, "serving_inflight_requests")
    assert live() == [facts()]
    promoted = model.promote()
    model.until_live(promoted)
    after = model.service.metrics()
    assert live() == [facts()]
    assert facts()[2] == promoted
    assert after[went_live] == before[went_live] + 1
    loaded = of(model, "serving_model_loaded_timestamp_seconds", uri=model.state["uri"])
    assert after[loaded] > max(value for name, value in before.items() if "loaded_timestamp" in name)
    until(lambda: old not in model.service.metrics())  # drained
    assert model.is_well(promoted)


def test_rejected_candidate_shows_until_the_next_promotion(model: Model) -> None:
    uri, live = model.state["uri"], model.state["version"]
    refused = sample("serving_promotions_total", model="actor", uri=uri, outcome="rejected")
    before = model.service.metrics()[refused]
    bad = model.promote(on_load="raise:oh")
    model.until_refused(bad)
    candidate = sample("serving_candidate_info", model="actor", uri=uri, version=bad, state="rejected")
    after = model.service.metrics()
    assert (after[candidate], after[refused]) == (1, before + 1)
    assert not [name for name in after if f'version="{bad}"' in name and name != candidate]
    model.promote(live)
    until(lambda: candidate not in model.service.metrics())
    assert model.service.metrics()[refused] == before + 1


def test_process_deaths_and_restarts_are_counted(model: Model, tmp_path: Path) -> None:
    up, held = of(model, "serving_processes"), of(model, "serving_process_resident_memory_bytes", process="0")
    assert model.service.metrics()[up] == 1
    assert model.service.metrics()[held] > 2**20
    with moved(model) as changes:
        assert model.predict(1.0, f"note:{tmp_path / 'pid'}").status_code == 200
        killed = int((tmp_path / "pid").read_text())
        os.kill(killed, signal.SIGKILL)
        until(lambda: killed not in descendants(model.service.process.pid))
        restarted = of(model, "serving_process_restarts_total", reason="crash")
        until(lambda: model.service.metrics()[restarted])
        assert model.predict().status_code == 200
    assert changes[of(model, "serving_process_deaths_total", reason="crash")] == 1
    assert changes[restarted] == 1
    assert model.service.metrics()[up] == 1


def test_unloaded_model_is_not_ready_and_not_required(model: Model) -> None:
    found = model.service.metrics()
    ready = {"uri": model.state["uri"], "model": "actor", "required": "true"}
    asleep = {"uri": "models:/tulip/Production", "model": "tulip", "required": "false"}
    assert found[sample("serving_model_ready", **ready)] == 1
    assert found[sample("serving_model_ready", **asleep)] == 0


@pytest.mark.anyio
async def test_blocked_event_loop_shows_lag() -> None:
    late: asyncio.Queue[float] = asyncio.Queue()
    measuring = asyncio.create_task(event_loop_lag.measure_loop_lag(late.put_nowait))
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251 — blocks the loop on purpose
    assert await late.get() > 0.2
    measuring.cancel()


# -- bounds and sums


def exposition(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_metrics_of_unloaded_versions_are_removed() -> None:
    metrics = Metrics()
    for number in range(50):
        version = metrics.for_version("iris", str(number), Gauges(lambda: 0, lambda: 0, lambda: [1]))
        version.succeeded.inc()
        version.retire()
    left = {*re.findall(r'version="(\d+)"', exposition(metrics))}
    assert left == {str(number) for number in range(30, 50)}
    assert "serving_processes{" not in exposition(metrics)


def test_version_of_two_references_is_exposed_once() -> None:
    metrics, labels = Metrics(), '{model="iris",version="1"}'
    first, second = (
        metrics.for_version("iris", "1", Gauges(lambda: 2, lambda: 3, lambda: [5, None, 7])) for _ in range(2)
    )
    assert f"serving_waiting_requests{labels} 4.0" in exposition(metrics)
    assert f"serving_inflight_requests{labels} 6.0" in exposition(metrics)
    assert f"serving_processes{labels} 4.0" in exposition(metrics)
    assert re.findall(r'memory_bytes\{model="iris",process="(\d)".*\} (\S+)', exposition(metrics)) == [
        ("0", "5.0"),
        ("2", "7.0"),
        ("3", "5.0"),
        ("5", "7.0"),
    ]
    first.retire()
    assert f"serving_waiting_requests{labels} 2.0" in exposition(metrics)
    second.retire()
    assert "serving_waiting_requests{" not in exposition(metrics)


# -- users of the metrics


@pytest.fixture(scope="module")
def exposed(model: Model) -> str:
    """Return the metrics after predictions, failures, a rejection, shadow calls and feedback."""

    def watched() -> bool:
        rows = {"rows": [{"x": -1.0}, {"x": 1.0}] * 500}
        model.service.client.post("/models/rose/predict/batch", json=rows).raise_for_status()
        found = model.service.client.get("/metrics").text
        return "serving_shadow_rows{" in found and "serving_drift_psi{" in found

    response = model.predict()
    outcome = {"prediction_id": response.headers["X-Prediction-ID"], "outcome": 2.0}
    assert model.service.client.post("/feedback", json=outcome).status_code == 200
    model.predict(1.0, "raise:oh")
    model.until_refused(model.promote(on_load="raise:oh"))
    until(watched)
    return model.service.client.get("/metrics").text


def test_documented_metrics_are_exposed(exposed: str) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    table = page.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    in_docs = {(cells := line.split(" | "))[0].strip("| `"): cells for line in table.strip().splitlines()[2:]}
    exposed_names = set()
    for family in text_string_to_metric_families(exposed):
        if family.name.startswith("serving_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exposed_names.add(name)
            _, kind, labels, documentation = in_docs[name]
            assert (kind, documentation) == (family.type, f"{family.documentation} |")
            if family.samples:
                named = sorted({label for each in family.samples for label in each.labels} - {"le"})
                assert labels.strip() == ", ".join(f"`{label}`" for label in named)
    # This service does not expose all of them, such as those of the journal.
    source = "".join(path.read_text() for path in (ROOT / "serving").rglob("*.py"))
    assert [
        name for name in in_docs.keys() - exposed_names if f'"{name.removesuffix("_total")}' not in source
    ] == []


@pytest.mark.parametrize("asked", [*promql.of_dashboard(), *promql.of_alerts()], ids=lambda each: each.expr)
def test_dashboard_and_alerts_use_exposed_metrics(exposed: str, asked: promql.Asked) -> None:
    labels: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(exposed):
        for each in family.samples:
            labels.setdefault(each.name, set()).update(each.labels)
    assert asked.names <= labels.keys()
    assert asked.labels <= OF_PROMETHEUS.union(*(labels[name] for name in asked.names))
    for name, label, _ in asked.matched:
        assert label in labels[name] | OF_PROMETHEUS, name


def test_alerts_use_existing_label_values() -> None:
    values = {
        "state": {each.value for each in CandidatePhase},
        "reason": {*ExitReason},
        "required": {"true", "false"},
    }
    matchers = {(label, value) for each in promql.of_alerts() for _, label, value in each.matched}
    matched = {(label, each) for label, value in matchers if label in values for each in value.split("|")}
    assert len(matched) > 5
    assert not [each for each in matched if each[1] not in values[each[0]]]


def test_alerts_have_instructions_and_tests() -> None:
    fires: dict[str, set[str]] = {}
    rests: set[str] = set()
    for case in promql.cases():
        times = [each["exp_samples"] for each in case["promql_expr_test"]]
        fired = [dict(re.findall(r'(\w+)="(.*?)"', each["labels"])) for at in times for each in at]
        for labels in fired:
            fires.setdefault(labels["alertname"], set()).update(labels)
        if [] in times:
            rests |= {labels["alertname"] for labels in fired}
    for rule in promql.rules():
        assert rule["alert"] in rests, rule
        assert {*rule["annotations"]} == {"summary", "description"}, rule
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert promql.in_words(rule) <= fires[rule["alert"]], rule


def test_dashboard_panels_do_not_overlap() -> None:
    places = [
        (x, y)
        for each in promql.panels()
        for at in [each["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(places) == len({*places})
    assert max(x for x, _ in places) < 24
    ids = [panel["id"] for panel in promql.panels()]
    assert len(ids) == len({*ids})


# -- Prometheus itself


def promtool(*command: str, stdin: str | None = None) -> str:
    """Run promtool, which must succeed; return its output."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(["promtool", *command], input=stdin, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def test_promtool_accepts_names_and_units(exposed: str) -> None:
    assert promtool("check", "metrics", stdin=exposed) == ""


def test_promtool_accepts_rules_and_configuration() -> None:
    assert f"{len(promql.rules())} rules found" in promtool("check", "rules", str(promql.ALERTS))
    promtool("check", "config", str(promql.PROMETHEUS / "prometheus.yaml"))


def test_alerts_fire_exactly_when_expected() -> None:
    promtool("test", "rules", str(promql.PROMETHEUS / "alerts_test.yaml"))


@pytest.fixture(scope="module")
def prometheus(
    model: Model, exposed: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Run Prometheus with the example configuration until it has scraped the service a few times."""
    config: dict[str, Any] = yaml.safe_load((promql.PROMETHEUS / "prometheus.yaml").read_text())
    config["rule_files"] = [str(promql.ALERTS)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [model.service.url.removeprefix("http://")]}]
    with prometheus_server.prometheus(tmp_path_factory.mktemp("prometheus"), config) as client:
        until(lambda: found(client, "count_over_time(serving_requests_total[1m]) > 2"))
        until(lambda: all(rule["health"] == "ok" for rule in evaluated(client)))
        yield client


def evaluated(client: httpx.Client) -> list[dict[str, Any]]:
    """Return the rules from the API of Prometheus."""
    return [rule for group in client.get("/rules").json()["data"]["groups"] for rule in group["rules"]]


def test_dashboard_panels_show_data(prometheus: httpx.Client) -> None:
    empty = [
        (panel["title"], target["expr"])
        for panel in promql.panels()
        for target in panel["targets"]
        if not found(prometheus, promql.filled(target["expr"]))
    ]
    assert empty == []


def test_prometheus_alerts_on_a_rejected_version(prometheus: httpx.Client) -> None:
    pending = {alert["labels"]["alertname"] for alert in prometheus.get("/alerts").json()["data"]["alerts"]}
    assert "ServingVersionRefused" in pending
    assert "ServingNotReady" not in pending
