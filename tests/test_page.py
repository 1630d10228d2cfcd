"""The status page, as people see it who run the service: in a real browser, with and without a mouse."""

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
from browsers import CHROMIUM
from casting import Registry
from conftest import NewRegistry
from line import free_port
from live import SELDOM, Service, served, until
from mlflow.types import ParamSpec
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from test_access import Keys
from test_live import problem

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
MARKUP = "<img/src=x/onerror=alert(1)>"


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(new_registry(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def service(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of fifty models: one to fill in, one to promote, and many that are asleep."""
    house = registry.add(
        "house",
        inputs="x: double, act: string?, rooms: long, garden: boolean, built: datetime",
        example=HOUSE,
        params=[ParamSpec("factor", "double", 2.0)],
        metadata={
            "serving": {
                "inputs": {"x": {"minimum": 0, "maximum": 10, "unit": "m²"}},
                "profile": {"rows": 1000, "inputs": {"x": {"edges": [5.0], "shares": [0.5, 0.5]}}},
            }
        },
    )
    for name, version in (
        ("house", house),
        ("moved", registry.add("moved")),
        (MANY[0], registry.add(MANY[0])),
    ):
        registry.promote(name, version)
    settings = {
        "models": "models:/house/Production,models:/moved/Production",
        "on_demand": ",".join(f"models:/{name}/Production" for name in MANY),
    }
    folder = tmp_path_factory.mktemp("served")
    # Fifty models are much to look for: at each look for a promotion, and all the while.
    settings |= {"journal_url": f"sqlite:///{folder}/journal.db", "poll_seconds": 0.5}
    with served(registry.uri, folder, **settings) as running:
        running.until_ready()
        yield running


class Viewer:
    """Somebody who looks at the page: what the browser asked for, and what it complained of."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page = context.new_page()
        self.url = url
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))

    def open(self, model: str = "") -> Page:
        """Open the page, or what it shows of a model."""
        self.page.goto(f"{self.url}/#{model}")
        return self.page

    def check(self) -> None:
        """Nothing was asked of anybody else, and nothing went wrong but what was refused on purpose."""
        hosts = {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")}
        assert hosts <= {urlsplit(self.url).netloc}
        refused = "Failed to load resource: the server responded with a status of"
        assert [each for each in self.complaints if not each.startswith(refused)] == []


@pytest.fixture
def look(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Viewer]]:
    """Have somebody look, in a browser of their own."""
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
    """What the table shows of a model."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=model, exact=True))


def detail(page: Page) -> Any:
    return page.get_by_role("article")


def field(page: Page, label: str) -> Any:
    """An input of the form."""
    return detail(page).get_by_label(label, exact=True)


def faults(page: Page) -> list[str]:
    """What axe finds, by every rule that it has for WCAG 2.2 AA and good practice."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}" for each in found for node in each["nodes"]
    ]


# -- what is live


def test_it_shows_what_is_live_since_when(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open()
    expect(page.locator("#overall")).to_have_text("Ready")
    expect(page).to_have_title("Ready · Model serving")
    expect(page.locator("#figures")).to_contain_text("2 of 50")
    expect(page.locator("#figures")).to_contain_text("reachable")
    told = service.ready()["models"][0]
    expect(row(page, "house/Production")).to_contain_text("Live")
    row(page, "house/Production").get_by_role("link").click()
    expect(detail(page).get_by_role("heading", level=2)).to_have_text("house/Production")
    expect(detail(page)).to_contain_text(f"version {told['version']}")
    expect(detail(page)).to_contain_text(told["digest"])
    since = detail(page).locator(".summary time")
    assert since.get_attribute("datetime")[:19] == told["loaded_at"][:19]
    assert told["loaded_at"][:19] in since.get_attribute("title")
    page.get_by_role("link", name="All models").click()
    expect(detail(page)).to_be_hidden()
    expect(row(page, MANY[1] + "/Production")).to_contain_text("Asleep")


def test_a_promotion_is_seen_while_it_happens(
    look: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = look().open("moved/Production")
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


def test_why_a_version_was_refused_is_read_on_the_page(
    look: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = look().open()
    expect(row(page, "moved/Production")).to_contain_text("Live")
    before = service.ready()["models"][1]["version"]
    version = registry.add("moved", on_load=f"raise:{MARKUP}")
    registry.promote("moved", version)
    expect(row(page, "moved/Production")).to_contain_text(f"{version} was refused")
    expect(page.locator("#overall")).to_contain_text("1 promotion needs a look")
    expect(page.get_by_role("status").first).to_contain_text(f"version {version} was refused.")
    page.get_by_label("Filter").fill("refused")
    expect(page.locator("#rows tr")).to_have_count(1)
    row(page, "moved/Production").get_by_role("link").click()
    told = detail(page).locator(".callout")
    expect(told.get_by_role("heading")).to_have_text(f"Version {version} was refused")
    expect(told).to_contain_text(f"raised ValueError: {MARKUP}")
    expect(told).to_contain_text("promote")
    assert page.locator("img").count() == 0
    assert faults(page) == []
    registry.promote("moved", before)
    expect(told).to_have_count(0)


def test_traffic_is_seen_with_its_figures(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open("house/Production")
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
    assert detail(page).get_by_role("slider", name="Time to answer").inner_text()


def test_drift_and_live_quality_are_seen(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open("house/Production")
    expect(detail(page).get_by_role("slider").first).to_be_visible()
    row = {"x": 1, "rooms": 1, "garden": True, "built": "2020-01-01T00:00:00"}
    answer = service.client.post("/predict/batch", json={"rows": [row] * 1000}).raise_for_status()
    told = detail(page).get_by_role("region", name="Drift").get_by_role("row")
    expect(told.nth(1)).to_contain_text(re.compile(r"x input.*much.*1,0\d\d"))
    expect(detail(page).locator(".callout")).to_contain_text("The input x has drifted")
    outcome = {"prediction_id": answer.headers["x-prediction-id"], "outcome": 1.25}
    until(lambda: service.client.post("/feedback", json=outcome).is_success)
    quality = detail(page).get_by_role("region", name="Live quality")
    expect(quality).to_contain_text("mean absolute error0.75")
    assert faults(page) == []


# -- «Try it»


def test_the_form_predicts_as_the_command_beside_it_does(
    look: Callable[..., Viewer], service: Service
) -> None:
    page = look().open("house/Production")
    for label, value in {"x in m²": "1.5", "rooms": "3", "act": ""}.items():
        expect(field(page, label)).to_have_value(value)
    expect(field(page, "garden")).to_be_checked()
    expect(field(page, "built")).to_have_value(re.compile("1999-05-01T10:30"))
    expect(field(page, "x in m²")).to_have_accessible_description("at least 0, at most 10")
    field(page, "x in m²").fill("4")
    field(page, "rooms").fill("9223372036854775807")
    field(page, "factor").fill("2.5")
    page.get_by_role("button", name="Predict").click()
    answer = detail(page).locator(".answer")
    expect(answer.locator(".said")).to_have_text("10.0")
    expect(answer).to_contain_text("Version 1 answered in")
    page.get_by_text("As a command").click()
    curl, option, body, url = shlex.split(
        detail(page).locator(".command code").inner_text().replace("\\\n", "")
    )
    assert (curl, option) == ("curl", "--json")
    again = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    assert again.json()["prediction"] == 10.0
    assert "9223372036854775807" in body


def test_nothing_can_be_sent_before_it_is_known_what_to_ask(
    look: Callable[..., Viewer], service: Service
) -> None:
    viewer = look()
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
    expect(detail(page).locator(".answer .said")).to_be_visible()
    # Nor is another model shown with what was asked and answered before.
    page.goto(f"{service.url}/#moved/Production")
    expect(detail(page).get_by_role("heading", level=2)).to_have_text("moved/Production")
    expect(button).to_be_hidden()
    expect(detail(page).locator(".answer .said")).to_be_hidden()


def test_what_does_not_fit_is_told_beside_its_field(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open("house/Production")
    field(page, "x in m²").fill("-1")
    field(page, "rooms").fill("")
    field(page, "factor").fill("1")
    page.get_by_role("button", name="Predict").click()
    expect(field(page, "x in m²")).to_have_accessible_description(re.compile("greater than or equal to 0"))
    expect(field(page, "x in m²")).to_be_focused()
    expect(field(page, "rooms")).to_have_accessible_description(re.compile("required"))
    for label, wrong in {"x in m²": "true", "rooms": "true", "garden": None}.items():
        assert field(page, label).get_attribute("aria-invalid") == wrong
    expect(detail(page).locator(".answer")).to_contain_text("422")
    assert faults(page) == []
    field(page, "x in m²").fill("1")
    field(page, "rooms").fill("1")
    field(page, "act").fill("raise:oops")
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".answer")).to_contain_text("500 Internal Server Error")
    assert field(page, "x in m²").get_attribute("aria-invalid") is None


def test_what_was_filled_in_stays_when_a_version_goes_live(
    look: Callable[..., Viewer], service: Service, registry: Registry
) -> None:
    page = look().open("moved/Production")
    field(page, "x").fill("21")
    version = registry.add("moved", factor=2.0)
    registry.promote("moved", version)
    expect(detail(page).locator(".summary")).to_contain_text(f"version {version}")
    expect(field(page, "x")).to_have_value("21")
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".answer")).to_contain_text(f"Version {version} answered")
    expect(detail(page).locator(".said")).to_have_text("42.0")


def test_a_model_that_is_asleep_is_woken_by_asking_it(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open(f"{MANY[0]}/Production")
    expect(detail(page)).to_contain_text("It is loaded when somebody asks for it")
    field(page, "Row").fill('{"x": 7')
    page.get_by_role("button", name="Predict").click()
    expect(field(page, "Row")).to_have_accessible_description(re.compile("no JSON"))
    field(page, "Row").fill('{"x": 7}')
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".summary")).to_contain_text("Live")
    expect(field(page, "x")).to_have_value("1")


# -- with a keyboard, a reader of screens, a phone


def test_everything_is_reached_with_the_keyboard_alone(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open()
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
    expect(detail(page).locator(".said")).to_have_text("4.0")
    press("Shift+Tab", page.get_by_role("link", name="All models"))
    page.keyboard.press("Enter")
    expect(row(page, "house/Production").get_by_role("link")).to_be_focused()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("dark", 390)])
def test_nothing_is_in_the_way_of_a_reader_in_light_dark_and_on_a_phone(
    look: Callable[..., Viewer], service: Service, scheme: Any, width: int
) -> None:
    page = look(color_scheme=scheme, viewport={"width": width, "height": 844}).open()
    expect(row(page, "house/Production")).to_be_visible()
    assert faults(page) == []
    page.goto(f"{service.url}/#house/Production")
    expect(field(page, "x in m²")).to_be_visible()
    page.get_by_text("As a command").click()
    page.get_by_text("As a table").first.click()
    assert faults(page) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) is (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_who_wants_no_motion_sees_none(look: Callable[..., Viewer], service: Service) -> None:
    moving = "document.styleSheets[0].cssRules.length && document.getAnimations().length"
    for motion, moves in (("reduce", False), ("no-preference", True)):
        page = look(reduced_motion=motion).open()
        expect(row(page, "house/Production")).to_be_visible()
        page.locator("#overall .badge").evaluate("each => each.className = 'badge busy'")
        assert bool(page.evaluate(moving)) is moves


# -- fifty models


def test_fifty_models_are_found_sorted_and_kept(look: Callable[..., Viewer], service: Service) -> None:
    page = look().open()
    expect(page.locator("#rows tr")).to_have_count(50)
    page.locator("#rows").evaluate("rows => [...rows.children].forEach(row => row.isTheSame = true)")
    page.get_by_label("Sort by").select_option("name")
    names = page.locator("#rows th").all_inner_texts()
    assert names == sorted(names)
    page.get_by_label("Filter").fill("many-4 asleep")
    expect(page.locator("#rows tr")).to_have_count(8)
    page.get_by_label("Filter").fill("nothing")
    expect(page.get_by_text("No model is called so.")).to_be_visible()
    page.get_by_label("Filter").fill("")
    before = page.locator("#figures time").last.get_attribute("datetime")
    expect(page.locator("#figures time").last).not_to_have_attribute("datetime", before)
    assert page.locator("#rows").evaluate("rows => [...rows.children].every(row => row.isTheSame)")


def test_the_figures_are_few_bytes_and_in_full_for_one_model(service: Service) -> None:
    every, one = (service.client.get(f"/status{query}") for query in ("", "?model=house"))
    assert len(every.json()["models"]) == 50
    assert len(every.content) < 40_000
    assert every.json()["models"][0]["series"] is None
    (house,) = one.json()["models"]
    assert len(house["series"]["times"]) == len(house["series"]["p99"]) <= 360
    assert [each["state"] for each in house["history"]] == ["live"]
    ready = service.ready()["models"][0]
    assert {name: house[name] for name in ready} == ready
    problem(service.client.get("/status?model=none"), 404)


# -- when it can't be seen


def test_a_service_that_is_away_is_told_of_and_comes_back(
    look: Callable[..., Viewer], service: Service
) -> None:
    viewer = look()
    page = viewer.open()
    expect(row(page, "house/Production")).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_role("alert")).to_contain_text("The service has not answered since")
    expect(page).to_have_title("✕ No answer · Model serving")
    page.context.set_offline(False)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page).to_have_title("Ready · Model serving")
    viewer.complaints = [each for each in viewer.complaints if "ERR_INTERNET_DISCONNECTED" not in each]


def test_whoever_pauses_it_is_shown_nothing_new(look: Callable[..., Viewer], service: Service) -> None:
    viewer = look()
    page = viewer.open()
    expect(row(page, "house/Production")).to_be_visible()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    page.wait_for_load_state("networkidle")
    asked = len(viewer.asked)
    ticks = service.client.get("/status").json()["ticks"]
    until(lambda: service.client.get("/status").json()["ticks"] > ticks)
    assert len(viewer.asked) == asked
    pause.click()
    until(lambda: page.evaluate("0") == 0 and len(viewer.asked) > asked)


# -- who may see it


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def locked(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, ring: Keys
) -> Iterator[tuple[Service, str, str]]:
    """A service with keys and a port of the operators: itself, that port's address, and a key for that."""
    folder = tmp_path_factory.mktemp("locked")
    registry = Registry(new_registry(folder))
    registry.add("moved")
    key = ring.create("ops", "--scope", "admin")
    settings = {"models": "models:/moved/1", "keys_file": ring.file, "admin_port": free_port()}
    settings |= {"poll_seconds": SELDOM}
    with served(registry.uri, folder, **settings, _key=key) as running:
        running.until_ready()
        yield running, running.logged(re.compile(r"status page, .* at (http://[\d.:]+)"))[1], key


def test_with_keys_it_asks_for_one_and_keeps_it_to_its_tab(
    look: Callable[..., Viewer], locked: tuple[Service, str, str], ring: Keys
) -> None:
    _, own, admin = locked
    client = ring.create("client")
    until(lambda: httpx.get(f"{own}/status", headers={"X-API-Key": client}).status_code == 403)
    page = look(own).open()
    secret = page.get_by_label("Key of an administrator")
    expect(secret).to_be_focused()
    assert faults(page) == []
    for key, reason in (("wrong", "Unknown API key."), (client, "This API key is limited to predictions.")):
        secret.fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text(reason)).to_be_visible()
        expect(secret).to_have_accessible_description(re.compile(reason))
    secret.fill(admin)
    page.get_by_role("button", name="Show the status").click()
    # The only model there is needs no choosing.
    page.get_by_role("button", name="Predict").click()
    expect(detail(page).locator(".said")).to_have_text("1.0")
    command = detail(page).locator(".command code")
    expect(command).to_contain_text("Authorization: Bearer $KEY")
    assert admin not in page.content()
    page.reload()
    expect(detail(page)).to_be_visible()
    other = page.context.new_page()
    other.goto(own)
    expect(other.get_by_label("Key of an administrator")).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(secret).to_be_visible()


def test_it_is_on_the_port_of_the_operators_alone(locked: tuple[Service, str, str]) -> None:
    service, own, _ = locked
    for path in ("/", "/page/app.js", "/status"):
        problem(service.client.get(path), 404)
        assert service.client.get(f"{own}{path}").status_code == 200


def test_its_files_need_no_key_and_may_do_little(locked: tuple[Service, str, str]) -> None:
    _, own, _ = locked
    found = httpx.get(own)
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    policy = found.headers["content-security-policy"]
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= {*policy.split("; ")}
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    static = Path(__file__).parent.parent / "serving" / "http" / "static"
    for file in static.iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        answer = httpx.get(f"{own}{path}")
        assert answer.content == file.read_bytes()
        assert answer.headers.get_list("cache-control") == ["no-cache"]
        again = httpx.get(f"{own}{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert httpx.head(f"{own}{path}").status_code == 200
        assert not re.findall(r"https?://(?!www\.w3\.org)", file.read_text()), (
            f"{file.name} names another host"
        )
