"""The forms of a model reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidReference
from serving.reference import FORMS, Reference, ReferenceKind

MODEL_ID = "m-" + "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("uri", "name", "kind", "selector"),
    [
        ("models:/iris/Production", "iris", ReferenceKind.STAGE, "Production"),
        ("models:/iris/production", "iris", ReferenceKind.STAGE, "Production"),
        ("models:/iris/STAGING", "iris", ReferenceKind.STAGE, "Staging"),
        ("models:/iris/Archived", "iris", ReferenceKind.STAGE, "Archived"),
        ("models:/iris/None", "iris", ReferenceKind.STAGE, "None"),
        ("models:/iris@champion", "iris", ReferenceKind.ALIAS, "champion"),
        ("models:/iris@Production", "iris", ReferenceKind.ALIAS, "Production"),
        ("models:/iris/3", "iris", ReferenceKind.VERSION, "3"),
        ("models:/iris/007", "iris", ReferenceKind.VERSION, "7"),
        ("models:/iris/latest", "iris", ReferenceKind.LATEST, "latest"),
        ("models:/iris/Latest", "iris", ReferenceKind.LATEST, "latest"),
        (f"models:/{MODEL_ID}", MODEL_ID, ReferenceKind.MODEL_ID, MODEL_ID),
        ("models:/my model.v2/1", "my model.v2", ReferenceKind.VERSION, "1"),
        ("models:/ирис@чемпион", "ирис", ReferenceKind.ALIAS, "чемпион"),
    ],
)
def test_every_form_is_parsed(uri: str, name: str, kind: ReferenceKind, selector: str) -> None:
    reference = Reference.parse(uri)
    assert (reference.name, reference.kind, reference.selector) == (name, kind, selector)
    assert str(reference) == reference.uri == uri


def test_surrounding_blanks_are_ignored() -> None:
    assert Reference.parse(" models:/iris/3\n") == Reference.parse("models:/iris/3")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "iris",
        "models:iris/3",
        "models://iris/3",
        "models:/",
        "models:/iris",
        "models:/m-123",
        "models:/iris/",
        "models:/iris@",
        "models:/iris/Production/3",
        "models:/iris/Production@champion",
        "models:/iris@champion/3",
        "models:/iris/Prod",
        "models:/iris/-1",
        "models:/iris/1.0",
        "models:/iris/①",
        "models:/iris:3",
        "runs:/0123/model",
        "MODELS:/iris/3",
        "s3://bucket/model",
        "/srv/models/iris",
    ],
)
def test_invalid_reference_error_lists_the_forms(uri: str) -> None:
    with pytest.raises(InvalidReference) as refused:
        Reference.parse(uri)
    assert FORMS in str(refused.value)
    assert repr(uri) in str(refused.value)


def test_mistyped_stage_error_lists_the_stages() -> None:
    with pytest.raises(InvalidReference, match="'Prod' is not a stage .Production, Staging, Archived, None."):
        Reference.parse("models:/iris/Prod")


@pytest.mark.parametrize(
    ("uri", "fixed"),
    [
        ("models:/iris/Production", False),
        ("models:/iris@champion", False),
        ("models:/iris/latest", False),
        ("models:/iris/3", True),
        (f"models:/{MODEL_ID}", True),
    ],
)
def test_only_version_and_model_id_are_fixed(uri: str, fixed: bool) -> None:
    assert Reference.parse(uri).is_fixed is fixed
    assert not Reference.parse_weighted(f"{uri}=5").is_fixed  # its status is written to tags


@given(st.text() | st.from_regex(r"models:/[^/@:]*[/@]?[^/@:]*", fullmatch=True))
def test_any_text_round_trips_or_is_rejected(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(reference)) == reference
