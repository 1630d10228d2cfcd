"""The status page in a real browser, with mouse and keyboard."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from mlflow.types import ParamSpec
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.service.test_auth import Keys
from tests.service.test_http_service import problem
from tests.support.browser import CHROMIUM
from tests.support.faulty_proxy import free_port
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served, until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
expect.set_options(timeout=60_000)

MANY = [f"many-{number:02}" for number in range(48)]
HOUSE = pd.DataFrame(
    {
        "x": [1.5],
        "rooms": [3],
        "garden": [True],
        "built": pd.to_datetime(["1999-05-01T10:30"]),
    }
)
UI = "https://mlflow.example/team"
MARKUP = "<img/src=x/onerror=alert(1)>"


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(new_registry(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def service(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service with fifty models: `house` for the form, `moved` for promotions, and many on demand."""
    house = registry.add(
        "house",
        inputs="x: double, act: string?, rooms: long, garden: boolean, built: datetime",
        example=HOUSE,
        params=[ParamSpec("factor", "double", 2.0)],
        metadata={
            "serving": {
                "inputs": {"x": {"minimum": 0, "maximum": 10, "unit": "m²"}},
                "profile": {
                    "rows": 1000,
                    "inputs": {
                        "x": {"edges": [5.0], "shares": [0.5, 0.5]},
                        "rooms": {"edges": [5.0], "shares": [0.5, 0.5]},
                    },
                },
            }
        },
    )
    for name, version in (
        ("house", house),
        ("moved", registry.add("moved")),
        (MANY[0], registry.add(MANY[0])),
    ):
        registry.promote(name, version)
    settings: dict[str, Any] = {
        "models": "models:/house/Production,models:/moved/Production",
        "on_demand": ",".join(f"models:/{name}/Production" for name in MANY),
    }
    folder = tmp_path_factory.mktemp("served")
    # Fifty models are many to poll.
    settings["mlflow_ui_url"] = UI
    settings |= {"journal_url": f"sqlite:///{folder}/journal.db", "poll_seconds": 0.5, "quality_seconds": 1}
    with served(registry.uri, folder, **settings) as running:
        running.until_ready()
        yield running


class Viewer:
    """A browser page that records its requests and errors."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page = context.new_page()
        self.url = url
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))

    def open(self, model: str = "") -> Page:
        """Open the page, or its section for a model."""
        self.page.goto(f"{self.url}/#{model}")
        return self.page

    def check(self) -> None:
        """Check that the page sent requests to this service only, and logged no unexpected error."""
        hosts = {urlsplit(url).netloc for url in self.requests if not url.startswith("data:")}
        assert hosts <= {urlsplit(self.url).netloc}
        refused = "Failed to load resource: the server responded with a status of"
        assert [error for error in self.errors if not error.startswith(refused)] == []


@pytest.fixture
def open_viewer(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Viewer]]:
    """Return a function that opens a page in a new browser context."""
    viewers = []

    def begin(url: str = "", **options: Any) -> Viewer:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
        viewer = Viewer(context, url or request.getfixturevalue("service").url)
        viewers.append(viewer)
        return viewer

    yield begin
    for viewer in viewers:
        viewer.page.context.close()
        viewer.check()


def row(page: Page, model: str) -> Any:
    """Return a model's row in the table."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=model, exact=True))


def detail(page: Page) -> Any:
    return page.get_by_role("article")


def field(page: Page, label: str) -> Any:
    """Return an input of the form."""
    return detail(page).get_by_label(label, exact=True)


def accessibility_faults(page: Page) -> list[str]:
    """Return axe's violations of WCAG 2.2 AA and best practices."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html']} {node['failureSummary']}"
        for violation in found
        for node in violation["nodes"]
    ]


# -- live versions


def test_page_shows_the_live_versions(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open()
    expect(page.locator("#overall")).to_have_text("Ready")
    expect(page).to_have_title("Ready · Model serving")
    expect(page.locator("#figures")).to_contain_text("2 of 50")
    expect(page.locator("#figures")).to_contain_text("reachable")
    state = service.ready()["models"][0]
    expect(row(page, "house/Production")).to_contain_text("Live")
    row(page, "house/Production").get_by_role("link").click()
    expect(detail(page).get_by_role("heading", level=2)).to_have_text("house/Production")
    expect(detail(page)).to_contain_text(f"version {state['version']}")
    expect(detail(page)).to_contain_text(state["digest"])
    since = detail(page).locator(".summary time")
    assert since.get_attribute("datetime")[:19] == state["loaded_at"][:19]
    assert state["loaded_at"][:19] in since.get_attribute("title")
    for name, link in {
        state["version"]: f"{UI}/#/models/house/versions/{state['version']}",
        state["run_id"]: f"{UI}/#/runs/{state['run_id']}",
    }.items():
        if name:
            link_to_ui = detail(page).get_by_role("link", name=name, exact=True)
            expect(link_to_ui).to_have_attribute("href", link)
            expect(link_to_ui).to_have_attribute("rel", "noopener")
    page.get_by_role("link", name="All models").click()
    expect(detail(page)).to_be_hidden()
    expect(row(page, MANY[1] + "/Production")).to_contain_text("Asleep")


def test_promotion_appears_while_it_happens(
    open_viewer: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = open_viewer().open("moved/Production")
    expect(detail(page).locator(".summary")).to_contain_text("Live")
    page.evaluate("window.isTheSame = true")
    version = registry.add("moved", factor=2.0)
    registry.promote("moved", version)
    expect(detail(page).locator(".summary")).to_contain_text(f"version {version}")
    expect(page.get_by_role("status").first).to_contain_text(f"moved/Production: version {version} is live.")
    expect(row(page, "moved/Production").get_by_role("cell").nth(1)).to_have_text(version)
    history = detail(page).get_by_role("group", name="History").get_by_role("row")
    expect(history.nth(1)).to_contain_text("went live")
    expect(history.nth(1)).to_contain_text("now")
    expect(detail(page).get_by_role("slider").first).to_contain_text(f"v{version}")
    assert page.evaluate("window.isTheSame")


def test_page_shows_why_a_version_was_rejected(
    open_viewer: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = open_viewer().open()
    expect(row(page, "moved/Production")).to_contain_text("Live")
    before = service.ready()["models"][1]["version"]
    version = registry.add("moved", on_load=f"raise:{MARKUP}")
    registry.promote("moved", version)
    expect(row(page, "moved/Production")).to_contain_text(f"{version} was rejected")
    expect(page.locator("#overall")).to_contain_text("1 promotion needs attention")
    expect(page.get_by_role("status").first).to_contain_text(f"version {version} was rejected.")
    page.get_by_label("Filter").fill("rejected")
    expect(page.locator("#rows tr")).to_have_count(1)
    row(page, "moved/Production").get_by_role("link").click()
    callout = detail(page).locator(".callout")
    expect(callout.get_by_role("heading")).to_have_text(f"Version {version} was rejected")
    expect(callout).to_contain_text(f"raised ValueError: {MARKUP}")
    expect(callout).to_contain_text("promote")
    assert page.locator("img").count() == 0
    assert accessibility_faults(page) == []
    registry.promote("moved", before)
    expect(callout).to_have_count(0)


def test_page_shows_traffic(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open("house/Production")
    for _ in range(20):
        service.client.post(
            "/predict", json={"x": 1, "rooms": 1, "garden": True, "built": "2020-01-01T00:00:00"}
        )
    service.client.post("/predict", json={})
    chart = detail(page).get_by_role("slider", name="Requests")
    expect(chart).to_have_attribute("aria-valuetext", re.compile(r"all [\d.]+, 4xx 0\.\d+, 5xx 0$"))
    expect(row(page, "house/Production").locator(".spark path").first).to_be_attached()
    figures = chart.locator("xpath=ancestor::figure").get_by_text("As a table")
    figures.click()
    table = detail(page).get_by_role("group", name="Requests/s, as a table").get_by_role("table")
    assert "4xx" in table.get_by_role("row").first.inner_text()
    assert detail(page).get_by_role("slider", name="Latency").inner_text()


def test_page_shows_drift_and_quality(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open("house/Production")
    expect(detail(page).get_by_role("slider").first).to_be_visible()
    row = {"x": 1, "rooms": 1, "garden": True, "built": "2020-01-01T00:00:00"}
    response = service.client.post("/predict/batch", json={"rows": [row] * 1000}).raise_for_status()
    drift_rows = detail(page).get_by_role("region", name="Drift").get_by_role("row")
    expect(drift_rows.filter(has_text="x input")).to_contain_text(re.compile(r"much.*1,0\d\d"))
    panel = detail(page).locator("details.callout")
    expect(panel).to_have_count(1)
    expect(panel.get_by_text("Drift: 2 warnings")).to_be_visible()
    expect(panel.get_by_text("The input x has drifted")).to_be_hidden()
    panel.get_by_text("Drift: 2 warnings").click()
    ready = service.ready()["models"][0]["warnings"]
    for warning, item in zip(
        sorted(ready), sorted(panel.get_by_role("listitem").all_inner_texts()), strict=True
    ):
        assert item.lower().removesuffix(".") == warning.lower().removesuffix(".")
    outcome = {"prediction_id": response.headers["x-prediction-id"], "outcome": 1.25}
    until(lambda: service.client.post("/feedback", json=outcome).is_success)
    quality = detail(page).get_by_role("region", name="Live quality")
    expect(quality).to_contain_text("mean absolute error0.75")
    recent = detail(page).get_by_role("region", name="Quality of the last 7 days").get_by_role("row")
    expect(recent.filter(has_text="All")).to_have_text(re.compile("All10.750.75"), timeout=60_000)
    assert accessibility_faults(page) == []


# -- «Try it»


def test_form_and_curl_command_predict_the_same(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open("house/Production")
    for label, value in {"x in m²": "1.5", "rooms": "3", "act": ""}.items():
        expect(field(page, label)).to_have_value(value)
    expect(field(page, "garden")).to_be_checked()
    expect(field(page, "built")).to_have_value(re.compile("1999-05-01T10:30"))
    expect(field(page, "x in m²")).to_have_accessible_description("at least 0, at most 10")
    field(page, "x in m²").fill("4")
    field(page, "rooms").fill("9223372036854775807")
    field(page, "factor").fill("2.5")
    page.get_by_role("button", name="Predict").click()
    output = detail(page).locator(".output")
    expect(output.locator(".result")).to_have_text("10.0")
    expect(output).to_contain_text("Version 1 responded in")
    page.get_by_text("As a command").click()
    curl, option, body, url = shlex.split(
        detail(page).locator(".command code").inner_text().replace("\\\n", "")
    )
    assert (curl, option) == ("curl", "--json")
    again = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    assert again.json()["prediction"] == 10.0
    assert "9223372036854775807" in body


def test_form_is_hidden_until_the_contract_is_known(
    open_viewer: Callable[..., Viewer], service: Service
) -> None:
    viewer = open_viewer()
    held: list[Route] = []
    viewer.page.route("**/models/*", lambda route: held.append(route))
    page = viewer.open("house/Production")
    button = page.get_by_role("button", name="Predict")
    expect(detail(page).get_by_role("heading", level=2)).to_have_text("house/Production")
    expect(detail(page).get_by_role("heading", name="History")).to_be_visible()
    expect(button).to_be_hidden()
    assert len(held) == 1
    held.pop().continue_()
    expect(button).to_be_visible()
    button.click()
    expect(detail(page).locator(".output .result")).to_be_visible()
    # The page of another model starts without the form and the response of this one.
    page.goto(f"{service.url}/#moved/Production")
    expect(detail(page).get_by_role("heading", level=2)).to_have_text("moved/Production")
    expect(button).to_be_hidden()
    expect(detail(page).locator(".output .result")).to_be_hidden()


def test_invalid_values_are_reported_at_their_fields(
    open_viewer: Callable[..., Viewer], service: Service
) -> None:
    page = open_viewer().open("house/Production")
    field(page, "x in m²").fill("-1")
    field(page, "rooms").fill("")
    field(page, "factor").fill("1")
    page.get_by_role("button", name="Predict").click()
    expect(field(page, "x in m²")).to_have_accessible_description(re.compile("greater than or equal to 0"))
    expect(field(page, "x in m²")).to_be_focused()
    expect(field(page, "rooms")).to_have_accessible_description(re.compile("required"))
    for label, wrong in {"x in m²": "true", "rooms": "true", "garden": None}.items():
        assert field(page, label).get_attribute("aria-invalid") == wrong
    expect(detail(page).locator(".output")).to_contain_text("422")
    assert accessibility_faults(page) == []
    field(page, "x in m²").fill("1")
    field(page, "rooms").fill("1")
    field(page, "act").fill("raise:oops")
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".output")).to_contain_text("500 Internal Server Error")
    assert field(page, "x in m²").get_attribute("aria-invalid") is None


def test_field_values_survive_a_swap(
    open_viewer: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = open_viewer().open("moved/Production")
    field(page, "x").fill("21")
    version = registry.add("moved", factor=2.0)
    registry.promote("moved", version)
    expect(detail(page).locator(".summary")).to_contain_text(f"version {version}")
    expect(field(page, "x")).to_have_value("21")
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".output")).to_contain_text(f"Version {version} responded")
    expect(detail(page).locator(".result")).to_have_text("42.0")


def test_request_from_the_form_loads_a_model(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open(f"{MANY[0]}/Production")
    expect(detail(page)).to_contain_text("The first request loads this model")
    field(page, "Row").fill('{"x": 7')
    page.get_by_role("button", name="Predict").click()
    expect(field(page, "Row")).to_have_accessible_description(re.compile("Not valid JSON"))
    field(page, "Row").fill('{"x": 7}')
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".summary")).to_contain_text("Live")
    expect(field(page, "x")).to_have_value("1")


# -- accessibility


def test_page_works_with_the_keyboard(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open()
    expect(row(page, "house/Production")).to_be_visible()
    focused = page.locator(":focus")

    def press(key: str, until_focused: Any) -> None:
        for _ in range(100):
            page.keyboard.press(key)
            if until_focused.evaluate("each => each === document.activeElement"):
                return
        raise AssertionError(f"{until_focused} is not reached")

    page.keyboard.press("Tab")
    expect(focused).to_have_text("Skip to the models")
    page.keyboard.press("Enter")
    press("Tab", page.get_by_label("Filter"))
    page.keyboard.type("house")
    expect(page.locator("#rows tr")).to_have_count(1)
    press("Tab", row(page, "house/Production").get_by_role("link"))
    outline = focused.evaluate("each => getComputedStyle(each).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(detail(page).get_by_role("heading", level=2)).to_be_focused()
    chart = detail(page).get_by_role("slider", name="Requests")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("all"))
    press("Tab", chart)
    page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-valuenow", "0")
    page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuenow", "1")
    press("Tab", field(page, "x in m²"))
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    expect(detail(page).locator(".result")).to_have_text("4.0")
    press("Shift+Tab", page.get_by_role("link", name="All models"))
    page.keyboard.press("Enter")
    expect(row(page, "house/Production").get_by_role("link")).to_be_focused()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("dark", 390)])
def test_page_is_accessible_in_light_dark_and_on_a_phone(
    open_viewer: Callable[..., Viewer], service: Service, scheme: Any, width: int
) -> None:
    page = open_viewer(color_scheme=scheme, viewport={"width": width, "height": 844}).open()
    expect(row(page, "house/Production")).to_be_visible()
    assert accessibility_faults(page) == []
    page.goto(f"{service.url}/#house/Production")
    expect(field(page, "x in m²")).to_be_visible()
    page.get_by_text("As a command").click()
    page.get_by_text("As a table").first.click()
    assert accessibility_faults(page) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) is (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_page_respects_reduced_motion(open_viewer: Callable[..., Viewer], service: Service) -> None:
    moving = "document.styleSheets[0].cssRules.length && document.getAnimations().length"
    for motion, moves in (("reduce", False), ("no-preference", True)):
        page = open_viewer(reduced_motion=motion).open()
        expect(row(page, "house/Production")).to_be_visible()
        page.locator("#overall .badge").evaluate("each => each.className = 'badge busy'")
        assert bool(page.evaluate(moving)) is moves


# -- fifty models


def test_fifty_models_are_filtered_and_sorted(open_viewer: Callable[..., Viewer], service: Service) -> None:
    page = open_viewer().open()
    expect(page.locator("#rows tr")).to_have_count(50)
    page.locator("#rows").evaluate("rows => [...rows.children].forEach(row => row.isTheSame = true)")
    page.get_by_label("Sort by").select_option("name")
    names = page.locator("#rows th").all_inner_texts()
    assert names == sorted(names)
    page.get_by_label("Filter").fill("many-4 asleep")
    expect(page.locator("#rows tr")).to_have_count(8)
    page.get_by_label("Filter").fill("nothing")
    expect(page.get_by_text("No model matches.")).to_be_visible()
    page.get_by_label("Filter").fill("")
    before = page.locator("#figures time").last.get_attribute("datetime")
    expect(page.locator("#figures time").last).not_to_have_attribute("datetime", before)
    assert page.locator("#rows").evaluate("rows => [...rows.children].every(row => row.isTheSame)")


def test_status_is_small_and_complete_for_one_model(service: Service) -> None:
    every, one = (service.client.get(f"/status{query}") for query in ("", "?model=house"))
    assert len(every.json()["models"]) == 50
    assert len(every.content) < 40_000
    assert every.json()["models"][0]["series"] is None
    (house,) = one.json()["models"]
    assert len(house["series"]["times"]) == len(house["series"]["p99"]) <= 360
    assert [event["state"] for event in house["history"]] == ["live"]
    ready = service.ready()["models"][0]
    assert {name: house[name] for name in ready} == ready
    problem(service.client.get("/status?model=none"), 404)


# -- connection lost, paused


def test_page_reports_an_unreachable_service(open_viewer: Callable[..., Viewer], service: Service) -> None:
    viewer = open_viewer()
    page = viewer.open()
    expect(row(page, "house/Production")).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_role("alert")).to_contain_text("No response from the service since")
    expect(page).to_have_title("✕ No response · Model serving")
    page.context.set_offline(False)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page).to_have_title("Ready · Model serving")
    viewer.errors = [error for error in viewer.errors if "ERR_INTERNET_DISCONNECTED" not in error]


def test_paused_page_sends_no_requests(open_viewer: Callable[..., Viewer], service: Service) -> None:
    viewer = open_viewer()
    page = viewer.open()
    expect(row(page, "house/Production")).to_be_visible()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    page.wait_for_load_state("networkidle")
    requests = len(viewer.requests)
    ticks = service.client.get("/status").json()["ticks"]
    until(lambda: service.client.get("/status").json()["ticks"] > ticks)
    assert len(viewer.requests) == requests
    pause.click()
    until(lambda: page.evaluate("0") == 0 and len(viewer.requests) > requests)


def test_page_shows_what_ready_reports_about_the_service(
    open_viewer: Callable[..., Viewer], service: Service
) -> None:
    component = {"name": "follower", "detail": "house", "state": "restarting", "restarts": 2}
    viewer = open_viewer()

    def respond(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"components": [component], "keys": "stale"})

    viewer.page.route("**/status", respond)
    page = viewer.open()
    expect(page.get_by_text("follower house: restarting, 2 restarts")).to_be_visible()
    expect(page.get_by_text("keys: stale")).to_be_visible()
    assert accessibility_faults(page) == []


# -- access


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def locked(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, ring: Keys
) -> Iterator[tuple[Service, str, str]]:
    """Run a service with keys and an admin port; return it, the port's address, and an admin key."""
    folder = tmp_path_factory.mktemp("locked")
    registry = Registry(new_registry(folder))
    registry.add("moved", streams=True, factor=1.0)
    key = ring.create("ops", "--scope", "admin")
    settings = {"models": "models:/moved/1", "keys_file": ring.file, "admin_port": free_port()}
    settings |= {"poll_seconds": SELDOM}
    with served(registry.uri, folder, **settings, _key=key) as running:
        running.until_ready()
        yield running, running.logged(re.compile(r"status page, .* at (http://[\d.:]+)"))[1], key


def test_page_keeps_the_api_key_in_its_tab(
    open_viewer: Callable[..., Viewer], locked: tuple[Service, str, str], ring: Keys
) -> None:
    _, own, admin = locked
    client = ring.create("client")
    until(lambda: httpx.get(f"{own}/status", headers={"X-API-Key": client}).status_code == 403)
    page = open_viewer(own).open()
    secret = page.get_by_label("API key with scope admin")
    expect(secret).to_be_focused()
    assert accessibility_faults(page) == []
    for key, reason in (("wrong", "Unknown API key."), (client, "This API key is limited to predictions.")):
        secret.fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text(reason)).to_be_visible()
        expect(secret).to_have_accessible_description(re.compile(reason))
    secret.fill(admin)
    page.get_by_role("button", name="Show the status").click()
    # The only model is selected automatically.
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".result")).to_have_text("1.0")
    command = detail(page).locator(".command code")
    expect(command).to_contain_text("Authorization: Bearer $KEY")
    assert admin not in page.content()
    page.reload()
    expect(detail(page)).to_be_visible()
    other = page.context.new_page()
    other.goto(own)
    expect(other.get_by_label("API key with scope admin")).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(secret).to_be_visible()


def test_page_is_on_the_admin_port_only(locked: tuple[Service, str, str]) -> None:
    service, own, _ = locked
    for path in ("/", "/page/app.js", "/status"):
        problem(service.client.get(path), 404)
        assert service.client.get(f"{own}{path}").status_code == 200


def test_files_need_no_key_and_have_a_strict_policy(locked: tuple[Service, str, str]) -> None:
    _, own, _ = locked
    found = httpx.get(own)
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    policy = found.headers["content-security-policy"]
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= {*policy.split("; ")}
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    static = Path(__file__).parents[2] / "serving" / "http" / "static"
    for file in static.iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        response = httpx.get(f"{own}{path}")
        assert response.content == file.read_bytes()
        assert response.headers.get_list("cache-control") == ["no-cache"]
        again = httpx.get(f"{own}{path}", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert httpx.head(f"{own}{path}").status_code == 200
        assert not re.findall(r"https?://(?!www\.w3\.org)", file.read_text()), (
            f"{file.name} names another host"
        )


# -- streams


@pytest.fixture
def stream(open_viewer: Callable[..., Viewer], locked: tuple[Service, str, str]) -> Page:
    """Open the page of a streaming model, with the option to stream selected."""
    _, own, admin = locked
    page = open_viewer(own).open()
    page.get_by_label("API key with scope admin").fill(admin)
    page.keyboard.press("Enter")
    field(page, "Stream the output").check()
    return page


def chunks(page: Page) -> Any:
    return detail(page).get_by_role("log", name="Streamed chunks")


def test_form_streams_the_output(stream: Page) -> None:
    field(stream, "act").fill("say:hello say:you")
    stream.get_by_role("button", name="Predict").click()
    expect(detail(stream).locator(".output")).to_contain_text("Version 1 streamed 2 chunks in")
    assert chunks(stream).inner_text().split() == ['"hello"', '"you"']
    expect(detail(stream).locator(".command code")).to_contain_text(
        re.compile(r"curl --no-buffer --json .*/models/moved/predict/stream", re.DOTALL)
    )
    assert accessibility_faults(stream) == []


def test_form_shows_a_failure_during_the_stream(stream: Page) -> None:
    field(stream, "act").fill("say:hello raise:secret")
    stream.get_by_role("button", name="Predict").click()
    expect(detail(stream).locator(".output")).to_contain_text("500 Internal Server Error")
    assert chunks(stream).inner_text().split() == ['"hello"']


def test_viewer_stops_an_endless_stream(stream: Page) -> None:
    field(stream, "act").fill("for:on")
    stream.get_by_role("button", name="Predict").click()
    expect(chunks(stream)).to_contain_text("onon")
    stream.get_by_role("button", name="Stop").click()
    expect(detail(stream).locator(".output")).to_contain_text("Stopped after")
    expect(stream.get_by_role("button", name="Stop")).to_be_hidden()
