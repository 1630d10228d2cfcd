"""Values of tags that would be too long stay valid JSON, or are not written."""

from __future__ import annotations

import json

import pytest

from serving.batching.sharing_proof import Basis, Sharing, reported
from serving.errors import RegistryRejected
from serving.registry.tag_changes import merged_tag
from serving.registry.unity_catalog import MAX_TAG_LENGTH, TagNames
from serving.settings.unity_catalog import Catalog


@pytest.mark.parametrize("char", ["x", '"', "\\", "é", "\n", "\x00"])
def test_sharing_with_a_long_reason_is_valid_json(char: str) -> None:
    sharing = Sharing(False, Basis.MONITORING, char * 1000)
    tags = merged_tag("serving.batching", lambda _: sharing.tag(), {})
    text = tags["serving.batching"] or ""
    assert json.loads(text)["shared"] is False
    assert reported({"serving.batching": text})


def test_databricks_gets_no_part_of_a_value() -> None:
    written: dict[str, str] = {}
    names = TagNames(Catalog.DATABRICKS)
    names.write("serving.approval", "1" * MAX_TAG_LENGTH, written.__setitem__)
    with pytest.raises(RegistryRejected, match="has 1001 characters, and Databricks accepts 1000"):
        names.write("serving.approval", "1" * (MAX_TAG_LENGTH + 1), written.__setitem__)
    assert written == {"serving.approval": "1" * MAX_TAG_LENGTH}


def test_other_registries_get_long_values() -> None:
    written: dict[str, str] = {}
    names = TagNames(None)
    names.write("serving.live", "1" * names.max_length, written.__setitem__)
    assert len(written["serving.live"]) == 5000
