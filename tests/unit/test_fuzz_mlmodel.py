"""Arbitrary content of the files of a version is parsed or rejected, without other effects."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contract import bounded_parser, mlmodel, model_files
from serving.contract.bounded_yaml import MAX_NODES, Refused, check_json, parse_yaml
from serving.contract.model_files import ModelFiles
from serving.models import input_example
from serving.processes import package_list, requirements
from serving.promotion_errors import (
    EnvironmentUnavailable,
    UnsupportedSignature,
    UntrustedArtifact,
    VerificationFailed,
)
from serving.registry.artifact_policy import ArtifactPolicy
from serving.settings.groups import ArtifactPolicySettings

REAL = {
    "flavors": {
        "python_function": {
            "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            "loader_module": "mlflow.sklearn",
            "model_path": "model.skops",
            "predict_fn": "predict",
            "python_version": "3.11.7",
        },
        "sklearn": {"code": None, "serialization_format": "skops", "sklearn_version": "1.9.1"},
    },
    "metadata": {
        "serving": {
            "task": "classification",
            "classes": ["a", "b"],
            "inputs": {"x": {"minimum": 0, "description": "a length", "unit": "cm"}},
            "profile": {"rows": 5, "inputs": {"x": {"edges": [0.0, 1.0], "shares": [0.2, 0.3, 0.5]}}},
        }
    },
    "saved_input_example_info": {"serving_input_path": "example.json", "type": "dataframe"},
    "signature": {
        "inputs": '[{"type": "double", "name": "x", "required": true}]',
        "outputs": '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]',
        "params": '[{"name": "top", "type": "long", "default": 3, "shape": null}]',
    },
    "utc_time_created": "2026-11-27 21:48:46.157802",
}
CONTENT = yaml.safe_dump(REAL).encode()
EXAMPLE = {"dataframe_split": {"columns": ["x"], "data": [[1.0], [2.0]]}, "params": {"top": 1}}
TOKENS = [b"[", b"{", b"]", b"}", b"&a ", b"*a ", b"<<: ", b"!!int ", b"? ", b"- ", b": ", b"\n", b"'", b'"']
TOKENS += [b"|\n", b"\xff", b"\x00", b"1:1:1", b".nan", b"2026-99-99", b"---\n", b"...\n", b"%YAML 9\n", b"~"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
names = st.sampled_from(
    ["type", "name", "required", "shape", "default", "tensor-spec", "properties", "items"]
)
specs = st.lists(st.dictionaries(names, values, max_size=6), max_size=4)


@st.composite
def mutated(draw: st.DrawFn, content: bytes = CONTENT) -> bytes:
    """Replace parts of a real file by tokens of YAML, by other parts of it, and by any bytes."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(changed)))
        end = min(len(changed), start + draw(st.integers(0, 30)))
        piece = draw(st.sampled_from(TOKENS) | st.binary(max_size=8) | st.just(bytes(changed[:start][-50:])))
        changed[start:end] = piece * draw(st.sampled_from([1, 1, 1, 3, 200]))
    return bytes(changed)


@st.composite
def altered(draw: st.DrawFn) -> dict[str, Any]:
    """Replace one value in a real description, at any depth."""
    changed = json.loads(json.dumps(REAL))
    place = changed
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            place[key] = draw(values | specs | specs.map(json.dumps))
            return dict(changed)
        place = place[key]


def read_all(described: Any, example: Any = EXAMPLE, **documents: Any) -> None:
    """Run all steps of a front on the files of a version, until one is rejected."""
    if not isinstance(described, dict):
        return
    files = ModelFiles(described, documents, {"requirements.txt": ["numpy"]}, example)
    needs = requirements.read(files)
    requirements.differences(needs)
    with suppress(UntrustedArtifact):
        ArtifactPolicy(ArtifactPolicySettings(strict_artifacts=True)).check_requirements(files, needs)
    with suppress(UnsupportedSignature, VerificationFailed):
        contract = mlmodel.contract(described, "iris", 10)
        input_example.example(files, contract)


@given(mutated())
def test_mutated_files_are_read_or_rejected(content: bytes) -> None:
    with suppress(Refused, yaml.YAMLError, ValueError):
        parsed = parse_yaml(content)
        json.dumps(parsed)
        read_all(parsed)


@given(altered())
def test_altered_descriptions_are_accepted_or_rejected(described: dict[str, Any]) -> None:
    read_all(parse_yaml(yaml.safe_dump(described).encode()))


@given(values | st.lists(st.dates() | st.datetimes()))
def test_plain_values_are_read_as_pyyaml_reads_them(value: Any) -> None:
    content = yaml.safe_dump(value, allow_unicode=True).encode()
    with suppress(Refused):
        parsed = json.dumps(parse_yaml(content), sort_keys=True)
        # PyYAML itself does not read every character as it wrote it.
        assert parsed == json.dumps(yaml.safe_load(content), sort_keys=True, default=str)


@given(values)
def test_arbitrary_example_is_read_or_rejected(example: Any) -> None:
    read_all(REAL, example)
    read_all(REAL, {"dataframe_split": example})
    read_all(REAL, {"inputs": example})
    json.dumps(bounded_parser.first_rows({"inputs": example}, 2))


@given(values, st.lists(st.text(max_size=40) | st.from_regex(r"[a-z]+( @ |==|>)[a-z0-9.:/]+"), max_size=5))
def test_arbitrary_requirements_are_read_or_rejected(value: Any, lines: list[str]) -> None:
    documents = {
        "python_env.yaml": {"python": value, "dependencies": lines},
        "conda.yaml": {"dependencies": value},
    }
    read_all(REAL, EXAMPLE, **documents)
    read_all(REAL, EXAMPLE, **{"python_env.yaml": {"dependencies": value, "build_dependencies": lines}})


@given(st.binary(max_size=200))
def test_arbitrary_package_list_is_read_or_rejected(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(EnvironmentUnavailable):
        (Path(folder) / "list").write_bytes(content)
        package_list.read(Path(folder) / "list")


@given(values)
def test_bounded_json_is_accepted(value: Any) -> None:
    with suppress(Refused):
        check_json(value, MAX_NODES)


@settings(max_examples=max(5, settings().max_examples // 20))
@given(mutated(), st.binary(max_size=100), st.binary(max_size=100))
def test_parser_process_survives(content: bytes, environment: bytes, requirements: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "MLmodel").write_bytes(content)
        (Path(folder) / "python_env.yaml").write_bytes(environment)
        (Path(folder) / "requirements.txt").write_bytes(requirements)
        with suppress(UnsupportedSignature):
            asyncio.run(model_files.read(Path(folder)))
