"""What the README and `docs/` say that can drift is what the code does."""

import re
from pathlib import Path

from serving.settings.settings import OPTIONS, Settings, env_name, format_default

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_settings_table_is_the_settings():
    told = (ROOT / "docs" / "settings.md").read_text()
    table = told.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    rows = [
        f"| `{env_name(name)}` | `{format_default(name)}` | {Settings.model_fields[name].description} |"
        for name in OPTIONS
    ]
    assert table.strip().splitlines()[2:] == rows


def test_every_setting_is_an_option():
    assert set(OPTIONS) == set(Settings.model_fields)


def test_commands_that_are_named_exist():
    for script in re.findall(r"scripts/\w+", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / script).is_file(), script


# -- docs/security.md

ROWS_OF_FAULTS = {*range(1, 61)}
TESTS = {
    name
    for module in (ROOT / "tests").glob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", module.read_text(), re.MULTILINE)
}


def test_every_promise_names_tests_that_are_there():
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("<!-- guarantees -->")[2].partition("<!-- /guarantees -->")[0]
    promises = table.strip().splitlines()[2:]
    for promise in promises:
        named = re.findall(r"`(test_\w+)`", promise)
        assert named, promise
        assert {*named} <= TESTS, {*named} - TESTS
    shown = {int(row) for row in re.findall(r"`test_row_(\d+)_", table)}
    assert shown == ROWS_OF_FAULTS


def test_every_row_of_faults_has_a_test_that_is_named_for_it():
    named = {int(row[1]) for name in TESTS if (row := re.match(r"test_row_(\d+)_", name))}
    assert named == ROWS_OF_FAULTS
