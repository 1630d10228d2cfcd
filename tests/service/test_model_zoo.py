"""Models of many kinds return through every protocol what MLflow returns, alone and beside other requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.model_zoo import ENTRY_MODULES
from tests.support.model_zoo.entries import entries
from tests.support.model_zoo.protocols import PROTOCOLS
from tests.support.model_zoo.service import Zoo, begin_to_save, zoo_of
from tests.support.registry import NewRegistry, quiet
from tests.support.service import FOR_SKLEARN

# The first test waits until all models are saved, and live.
pytestmark = pytest.mark.timeout(600)

with quiet():
    NAMES = [name for module in ENTRY_MODULES for name in entries(module)]


@pytest.fixture(scope="module")
def zoo(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Start a service of every model that the test environment can run."""
    home, folders = tmp_path_factory.mktemp("model-zoo"), tmp_path_factory.mktemp("models")
    # Two at a time, of about the same length.
    with (
        begin_to_save(folders, *ENTRY_MODULES[:3]) as some,
        begin_to_save(folders, *ENTRY_MODULES[3:]) as others,
    ):
        pass
    assert (some.returncode, others.returncode) == (0, 0)
    with zoo_of(ENTRY_MODULES, folders, new_registry(home), home, preload=FOR_SKLEARN) as zoo:
        yield zoo


@pytest.mark.parametrize("name", NAMES)
def test_model_goes_live(zoo: Zoo, name: str) -> None:
    state = zoo.state(name)
    assert state["state"] == "live", (state["reason"], state["candidate"])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("agent_")])
def test_logged_example_of_an_agent_verifies_it(zoo: Zoo, name: str) -> None:
    assert not [warning for warning in zoo.state(name)["warnings"] if "unverified" in warning]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_models_own(zoo: Zoo, name: str, protocol: str) -> None:
    assert not (found := zoo.differences(name, protocol)), "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_concurrent_requests_do_not_change_predictions(zoo: Zoo, name: str) -> None:
    assert not (found := zoo.differences_together(name)), "\n".join(found)
