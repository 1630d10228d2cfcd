"""What the README says that can drift is what the code does."""

import re
from pathlib import Path

from serving.settings import OPTIONS, Settings, shown_default, variable

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_settings_table_is_the_settings():
    table = README.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    rows = [
        f"| `{variable(name)}` | `{shown_default(name)}` | {Settings.model_fields[name].description} |"
        for name in OPTIONS
    ]
    assert table.strip().splitlines()[2:] == rows


def test_every_setting_is_an_option():
    assert set(OPTIONS) == set(Settings.model_fields)


def test_commands_that_are_named_exist():
    for script in re.findall(r"scripts/\w+", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / script).is_file(), script
