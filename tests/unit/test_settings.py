"""Settings: defaults, sources of values, and the message for an invalid setting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.server.healthcheck import is_alive
from serving.settings.settings import OPTIONS, Settings, env_name, format_default, format_errors
from serving.settings.unknown_variables import suspicious_variables


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    ours = ("SERVING_", "MLFLOW_", "AIP_", "SAGEMAKER_", "PORT")
    for name in [name for name in os.environ if name.startswith(ours)]:
        monkeypatch.delenv(name)
    return monkeypatch


def lines(**values: str) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        Settings(**values)  # type: ignore[arg-type]
    return format_errors(refused.value)


def test_defaults_match_the_documentation() -> None:
    settings = Settings()
    assert [str(reference) for reference in settings.models] == ["models:/iris/Production"]
    assert (settings.host, settings.port, settings.replicas, settings.poll_seconds) == (
        "127.0.0.1",
        8000,
        1,
        1,
    )
    assert settings.registry_uri is None


def test_the_default_registry_is_below_the_current_folder(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.chdir(tmp_path)
    assert Settings().tracking_uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_has_a_shown_default_and_a_description(name: str) -> None:
    assert format_default(name)
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "0", 0),
        ("replicas", "3", 3),
        ("deadline_seconds", "0.5", 0.5),
        ("drain_seconds", "0", 0),
        ("tracking_uri", "http://mlflow:5000", "http://mlflow:5000"),
        ("registry_uri", "http://mlflow:5000", "http://mlflow:5000"),
        ("store_dir", "/srv/store", Path("/srv/store")),
    ],
)
def test_setting_is_read_from_its_variable(
    environment: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    environment.setenv(env_name(name), text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize("name", ["models", "port", "tracking_uri"])
def test_empty_variable_counts_as_unset(environment: pytest.MonkeyPatch, name: str) -> None:
    default = getattr(Settings(), name)
    environment.setenv(env_name(name), "")
    assert getattr(Settings(), name) == default


@pytest.mark.parametrize(
    ("name", "text", "flag", "value"),
    [("port", "1", "2", 2), ("tracking_uri", "sqlite:///a", "sqlite:///b", "sqlite:///b")],
)
def test_flags_override_the_environment(
    environment: pytest.MonkeyPatch, name: str, text: str, flag: str, value: object
) -> None:
    environment.setenv(env_name(name), text)
    assert getattr(Settings(**{name: flag}), name) == value  # type: ignore[arg-type]


def test_several_models_are_separated_by_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SERVING_MODELS", "models:/iris@champion, models:/diabetes/3 ,")
    assert [str(reference) for reference in Settings().models] == [
        "models:/iris@champion",
        "models:/diabetes/3",
    ]


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("port", "http", "valid integer"),
        ("port", "65536", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("replicas", "0", "greater than or equal to 1"),
        ("replicas", "1.5", "valid integer"),
        ("poll_seconds", "0", "greater than 0"),
        ("poll_seconds", "nan", "finite"),
        ("poll_seconds", "inf", "finite"),
        ("drain_seconds", "inf", "finite"),
        ("load_seconds", "inf", "finite"),
        ("deadline_seconds", "-1", "greater than 0"),
        ("deadline_seconds", "1e999", "finite"),
        ("max_body_bytes", "10", "greater than or equal to 1024"),
        ("max_queue_size", "none", "valid integer"),
        ("models", "iris", "is not a model reference: write models:/iris/Production (stage)"),
        ("models", "models:/iris", "names a model but no version"),
        ("models", "models:/iris/Prod", "is not a stage (Production, Staging, Archived, None)"),
        ("models", ",", "at least 1"),
    ],
)
@pytest.mark.parametrize("by", ["variable", "flag"])
def test_invalid_setting_is_reported_in_one_line(
    environment: pytest.MonkeyPatch, name: str, text: str, expected: str, by: str
) -> None:
    if by == "variable":
        environment.setenv(env_name(name), text)
    (line,) = lines(**({name: text} if by == "flag" else {}))
    assert line.startswith(f"{env_name(name)}: ")
    assert expected in line
    assert "\n" not in line
    assert "pydantic" not in line


@pytest.mark.parametrize(
    ("variables", "host", "port"),
    [
        ({"PORT": "1"}, "0.0.0.0", 1),
        ({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2"}, "0.0.0.0", 2),
        ({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2", "AIP_HTTP_PORT": "3"}, "0.0.0.0", 3),
        ({"PORT": "1", "AIP_HTTP_PORT": "3", "SERVING_PORT": "4"}, "0.0.0.0", 4),
        ({"PORT": "1", "SERVING_HOST": "127.0.0.2"}, "127.0.0.2", 1),
        ({"PORT": "", "AIP_HTTP_PORT": ""}, "127.0.0.1", 8000),
        ({"SERVING_PORT": "4"}, "127.0.0.1", 4),
    ],
)
def test_variables_of_platforms_set_host_and_port(
    environment: pytest.MonkeyPatch, variables: dict[str, str], host: str, port: int
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert (Settings().host, Settings().port) == (host, port)
    assert Settings(port="9").port == 9


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("PORT", "http", "valid integer"),
        ("AIP_HTTP_PORT", "65536", "less than or equal to 65535"),
        ("AIP_PREDICT_ROUTE", "predict", "write a path such as /predict"),
        ("AIP_HEALTH_ROUTE", "/a b", "write a path such as /predict"),
        ("SERVING_HEALTH_ROUTE", "/{x}", "write a path such as /predict"),
    ],
)
def test_message_names_the_variable_of_the_platform(
    environment: pytest.MonkeyPatch, variable: str, text: str, expected: str
) -> None:
    environment.setenv(variable, text)
    (line,) = lines()
    assert line.startswith(f"{variable}: ")
    assert expected in line


def test_every_invalid_setting_has_a_line(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SERVING_PORT", "http")
    environment.setenv("SERVING_REPLICAS", "0")
    named = [line.partition(":")[0] for line in lines(models="iris")]
    assert sorted(named) == ["SERVING_MODELS", "SERVING_PORT", "SERVING_REPLICAS"]


def test_only_served_models_can_be_cached() -> None:
    assert Settings(cached_models="iris").cached_models == ("iris",)
    with pytest.raises(ValidationError) as caught:
        Settings(cached_models="iris,rose")
    assert format_errors(caught.value) == ["SERVING_CACHED_MODELS: rose: no such model in SERVING_MODELS"]


def test_model_can_not_be_both_eager_and_on_demand() -> None:
    assert Settings(models="models:/iris/1", on_demand="models:/iris/2", cached_models="iris").on_demand
    with pytest.raises(ValidationError) as caught:
        Settings(models="models:/iris/1", on_demand="models:/rose/1,models:/iris/1")
    assert format_errors(caught.value) == ["SERVING_ON_DEMAND: models:/iris/1: also in SERVING_MODELS"]


@pytest.mark.parametrize("name", ["port", "grpc_port", "admin_port"])
def test_service_link_of_kubernetes_is_no_port(environment: pytest.MonkeyPatch, name: str) -> None:
    default = getattr(Settings(), name)
    environment.setenv(env_name(name), "tcp://10.96.0.1:80")
    assert getattr(Settings(), name) == default
    (line,) = lines(**{name: "tcp://10.96.0.1:80"})  # a flag does not come from Kubernetes
    assert line == f"{env_name(name)}: must be a valid integer, not 'tcp://10.96.0.1:80'"


def test_health_check_ignores_a_service_link() -> None:
    assert isinstance(is_alive({"SERVING_PORT": "tcp://10.96.0.1:80"}), bool)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SERVING_PORTT", "1", ["SERVING_PORTT: there is no such setting; did you mean SERVING_PORT?"]),
        ("SERVING_COLOUR", "1", ["SERVING_COLOUR: there is no such setting"]),
        ("serving_host", "::1", []),
        ("SERVING_SERVICE_HOST", "10.0.0.1", []),
        ("SERVING_SERVICE_PORT_HTTP", "80", []),
        ("SERVING_PORT_80_TCP_PROTO", "tcp", []),
        ("SERVING_MODELS_PORT", "tcp://10.0.0.1:80", []),
        ("OTHER_PORT", "tcp://10.0.0.1:80", []),
    ],
)
def test_variables_that_only_look_like_settings(variable: str, value: str, expected: list[str]) -> None:
    variables = [env_name(name) for name in OPTIONS]
    assert [*suspicious_variables({variable: value}, variables)] == expected


def test_mistake_in_an_aliased_or_similar_name_names_its_variable() -> None:
    assert [line.partition(":")[0] for line in lines(mlflow_ui_url="x")] == ["SERVING_MLFLOW_UI_URL"]
    assert lines(tracking_uri=5) == ["MLFLOW_TRACKING_URI: must be a valid string, not 5"]  # type: ignore[arg-type]
