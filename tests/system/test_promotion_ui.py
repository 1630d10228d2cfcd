"""A data scientist's promotions, clicked in the MLflow UI in a real browser while clients keep calling."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from serving.approval import approvers, private_key
from tests.support.browser import CHROMIUM
from tests.support.promotions import Callers, Model, Tracking
from tests.support.service import PROGRAM, served, until

NAME = "clicked"
# The switch «New model registry UI» sets this when it is turned off, to show stages.
_STAGES = "localStorage.setItem('_mlflow_user_setting_dismiss_next_model_registry_ui', 'true')"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
    pytest.mark.timeout(300),
]


class Registry:
    """The MLflow UI, open on a model's versions."""

    def __init__(self, page: Page, tracking: Tracking, shots: Path) -> None:
        self.page, self._url, self._shots = page, tracking.url, shots
        self._client = tracking.registry.client

    def open(self, version: str) -> None:
        """Load the current page of a version."""
        self.page.goto("about:blank")
        self.page.goto(f"{self._url}/#/models/{NAME}/versions/{version}")
        self.page.get_by_role("heading", name=f"Version {version}").first.wait_for()

    def transition(self, version: str, stage: str, *, archive: bool = False) -> None:
        """Move a version to a stage in the view with stages."""
        self.open(version)
        self.page.click(".mlflow-stage-transition-dropdown")
        items = self.page.locator("[role=menuitem], [role=option], li, div")
        items.filter(has_text="Transition to").filter(has_text=stage).last.click()
        dialog = self.page.get_by_role("dialog")
        if archive:
            dialog.locator("label:has(input[name=archiveExistingVersions])").click()
        dialog.get_by_role("button", name="OK").click()
        dialog.wait_for(state="hidden")

    def alias(self, version: str, alias: str) -> None:
        """Set an alias of a version in the new view."""
        self.open(version)
        self.page.locator("button[aria-label*='alias' i], button:has-text('Add')").first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("combobox").fill(alias)
        self.page.keyboard.press("Enter")
        dialog.get_by_role("button", name="Save aliases").click()
        dialog.wait_for(state="hidden")
        self.page.get_by_text(alias).first.wait_for()
        self.picture(f"version-{version}-{alias}")

    def until_tagged(self, version: str, state: str, *texts: str) -> None:
        """Reload a version's page until its tags show a state and texts; save a screenshot."""

        def tagged() -> bool:
            return self._client.get_model_version(NAME, version).tags.get("serving.state") == state

        def displayed() -> bool:
            self.open(version)
            self.page.get_by_text("Tags").first.wait_for()
            rows = self.page.get_by_role("row").all_inner_texts()
            states = [row.split()[1:] for row in rows if row.split()[:1] == ["serving.state"]]
            return states == [[state]] and all(any(text in row for row in rows) for text in texts)

        until(tagged)  # checked first, because loading the page takes seconds
        until(displayed)
        self.picture(f"version-{version}-{state}")

    def picture(self, name: str) -> None:
        """Save a screenshot."""
        number = len([*self._shots.glob("*.png")]) + 1
        self.page.screenshot(path=self._shots / f"{number}-{name}.png", full_page=True)


@pytest.fixture
def opened(browser: Browser, tracking: Tracking, tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Open the UI in a new browser context, in the view with stages or in the new one."""
    contexts = []

    def open_view(*, stages: bool) -> Registry:
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        contexts.append(context)
        if stages:
            context.add_init_script(_STAGES)
        return Registry(context.new_page(), tracking, tmp_path)

    yield open_view
    for context in contexts:
        context.close()


def require_accuracy(tracking: Tracking, folder: Path) -> None:
    """Set rules and labelled rows: the label is the input, as version 1 predicts it, and noise."""
    x = np.linspace(1, 2, 500)
    rows = pd.DataFrame({"x": x, "target": x + np.random.default_rng(0).normal(0, 0.1, len(x))})
    path = folder / "rows.csv"
    rows.to_csv(path, index=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    client = tracking.registry.client
    client.set_registered_model_tag(NAME, "serving.evaluation", f"{path}#sha256={digest}")
    client.set_registered_model_tag(NAME, "serving.require", "rmse <= 1.1 * champion")


def test_promotion_in_the_ui_changes_the_live_version(
    tracking: Tracking, opened: Callable[..., Registry], tmp_path: Path
) -> None:
    references = f"models:/{NAME}/Production,models:/{NAME}@champion"
    with served(tracking.url, tmp_path, models=references, poll_seconds=0.5) as service:
        model = Model(NAME, service, tracking.registry)
        champion = Model(NAME, service, tracking.registry, "@champion")
        first, second, third = model.add(), model.add(), model.add()
        broken = model.add(on_load="raise:no_weights")
        model.promote(first)
        model.until_live(first)
        registry = opened(stages=True)
        with Callers(model) as callers:
            registry.transition(second, "Production", archive=True)
            model.until_live(second)
            callers.until_answered_by(second)
            registry.until_tagged(second, "live", "serving.since")
            registry.until_tagged(first, "superseded", f"{NAME} version {second} went live")

            opened(stages=False).alias(third, "champion")
            champion.until_live(third)

            # Going back to the first without archiving has no effect; both places show that.
            registry.transition(first, "Production")
            (warning,) = model.until(lambda state: state["warnings"])["warnings"]
            assert f"open version {second} in the MLflow UI and transition it to Archived" in warning
            registry.until_tagged(first, "superseded", "it is in Production too")
            assert model.is_well(second)
            registry.transition(second, "Archived")
            model.until_live(first)
            callers.until_answered_by(first)
            registry.until_tagged(first, "live", "promoted again while it was still warm")

            registry.transition(broken, "Production", archive=True)
            assert "no_weights" in model.until_refused(broken)
            registry.until_tagged(broken, "rejected", "no_weights")
            callers.until_more()
            require_accuracy(tracking, tmp_path)
            worse = model.add(factor=1.2)
            registry.transition(worse, "Production", archive=True)
            assert f"compared with {NAME} version {first}" in model.until_refused(worse)
            registry.until_tagged(
                worse, "rejected", "rmse <= 1.1 * champion is required", "serving.evaluation"
            )
            callers.until_more()
        assert callers.faults == []
        assert callers.versions == [int(first), int(second)]
        assert model.is_well(first)

        equal = model.add(factor=1.0)
        registry.transition(equal, "Production", archive=True)
        model.until_live(equal)
        page = registry.page
        page.goto(f"{service.url}/#{NAME}/Production")
        rules = page.get_by_role("region", name="Evidence").get_by_role("row")
        expect(rules.last).to_contain_text("rmse <= 1.1 * championholds")


def test_approved_version_is_live_on_its_page(
    tracking: Tracking, opened: Callable[..., Registry], tmp_path: Path
) -> None:
    file, key = tmp_path / "approvers.json", tmp_path / "alice.key"
    public = private_key.public_bytes(private_key.create(key, "alice", ""))
    approvers.write(file, [approvers.create("alice", public)])
    references = f"models:/{NAME}/Production"
    with served(tracking.url, tmp_path, models=references, approvers=file, poll_seconds=0.5) as service:
        model = Model(NAME, service, tracking.registry)
        version = model.add()
        registry = opened(stages=True)
        registry.transition(version, "Production", archive=True)
        command = f"serving approve models:/{NAME}/{version} --key FILE"
        registry.until_tagged(version, "waiting", "it has no approval", command)
        program, *arguments = command.replace("FILE", str(key)).split()
        assert program == PROGRAM.name
        subprocess.run([PROGRAM, *arguments], env=service.env, check=True, stdin=subprocess.DEVNULL)
        model.until_live(version)
        registry.until_tagged(version, "live", "serving.approval", '"approver":"alice"')
        assert model.is_well(version)
        registry.page.goto(f"{service.url}/#{NAME}/Production")
        facts = registry.page.get_by_role("region", name="Live version")
        expect(facts).to_contain_text("Approved byalice, ")
