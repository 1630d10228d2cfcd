"""The Helm chart renders the same objects as kustomize, with Helm's own library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from serving import __version__
from tests.system.test_deployment import KUBERNETES, OF_OPERATORS, ROOT, VERSIONS, composed, rendered

helm = pytest.importorskip("helm_python", reason="its wheels exist for Linux, macOS and Windows on x86-64")
CHART = ROOT / "deploy" / "helm"
MARKS = {
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/part-of",
    "helm.sh/chart",
}
ALL: dict[str, Any] = {
    "grpc": {"enabled": True},
    "monitoring": {"enabled": True},
    "keys": {"enabled": True},
    "autoscaling": {"type": "keda"},
}
Manifest = dict[str, Any]


def templates(values: dict[str, Any], name: str = "serving") -> list[Manifest]:
    """Return the manifests that Helm renders with these values."""
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name=name, namespace="ml-serving").values()
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def ordered(value: Any) -> Any:
    """Sort lists of named objects, whose order has no meaning; kustomize puts patches first."""
    if isinstance(value, dict):
        return {key: ordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [ordered(item) for item in value]
        is_named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: item["name"]) if is_named else items
    return value


def comparable(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Return manifests by kind and name, without the marks of the two tools."""
    text = re.sub(r"serving-settings-\w{10}", "serving-settings", json.dumps(manifests))
    result = {}
    for manifest in json.loads(text):
        labels = manifest["metadata"].get("labels", {})
        manifest["metadata"]["labels"] = {key: labels[key] for key in labels if key not in MARKS}
        manifest["metadata"].pop("annotations", None)
        if template := manifest["spec"].get("template") if "spec" in manifest else None:
            template["metadata"].pop("annotations", None)
        result[manifest["kind"], manifest["metadata"]["name"]] = ordered(manifest)
    return result


@pytest.mark.parametrize(
    ("values", "components"),
    [
        ({}, []),
        ({"grpc": {"enabled": True}}, ["grpc"]),
        ({"monitoring": {"enabled": True}}, ["monitoring"]),
        ({"autoscaling": {"type": "keda"}}, ["keda"]),
        (ALL, ["grpc", "monitoring", "keys", "keda"]),
    ],
    ids=["defaults", "grpc", "monitoring", "keda", "all"],
)
def test_chart_and_kustomize_render_the_same(
    values: dict[str, Any], components: list[str], tmp_path: Path
) -> None:
    folder = composed(tmp_path, "base", components) if components else "base"
    chart, kustomize = comparable(templates(values)), comparable(rendered(folder))
    assert chart.keys() == kustomize.keys()
    for key, manifest in kustomize.items():
        assert chart[key] == manifest, key


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "all"])
def test_chart_is_valid_for_kubernetes(values: dict[str, Any], version: str) -> None:
    for manifest in templates(values):
        if manifest["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_chart_passes_lint() -> None:
    report = helm.lint(str(CHART))
    assert [line["error"] for line in report["messages"]] == ["icon is recommended"]
    assert report["errors"] == []


def test_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"autoscaling": {"type": "vpa"}}, "'hpa', 'keda', 'none'"),
        ({"imgae": {}}, "additional properties 'imgae' not allowed"),
        ({"settings": {"SERVING_PORT": "1"}}, "invalid propertyName 'SERVING_PORT'"),
        ({"settings": {"serving_models": "x"}}, "invalid propertyName 'serving_models'"),
        ({"ports": {"http": 0}}, "ports/http"),
        ({"autoscaling": {"keda": {"serverAddress": "prometheus"}}}, "serverAddress"),
    ],
)
def test_invalid_values_are_rejected(values: dict[str, Any], expected: str) -> None:
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError, match=re.escape(expected)):
        chart.validate_schema(values)


def test_other_names_and_values_are_rendered_everywhere() -> None:
    settings = {"SERVING_MAX_PROCESS_BYTES": 1073741824, "SERVING_SANDBOX": True}
    values = ALL | {"name": "iris", "settings": settings, "service": {"type": "LoadBalancer"}}
    manifests = comparable(templates(values, name="other"))
    assert {name.partition("-")[0] for _, name in manifests} == {"iris"}
    data = manifests["ConfigMap", "iris-settings"]["data"]
    assert data["SERVING_MAX_PROCESS_BYTES"] == "1073741824"  # not 1.073741824e+09
    assert data["SERVING_SANDBOX"] == "true"
    assert manifests["Service", "iris"]["spec"]["type"] == "LoadBalancer"
    container = manifests["StatefulSet", "iris"]["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"][0]["configMapRef"]["name"] == "iris-settings"


def test_changed_setting_restarts_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        (pods,) = (item for item in templates(values) if item["kind"] == "StatefulSet")
        digest: str = pods["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        return digest

    assert checksum({}) == checksum({"replicas": 7})
    assert checksum({}) != checksum({"settings": {"SERVING_REPLICAS": 2}})


def test_fixed_number_of_pods_needs_no_autoscaler() -> None:
    manifests = comparable(templates({"autoscaling": {"type": "none"}, "replicas": 2}))
    assert manifests["StatefulSet", "serving"]["spec"]["replicas"] == 2
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & {kind for kind, _ in manifests}


def test_queries_of_keda_use_documented_metrics() -> None:
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    scaled = yaml.safe_load((KUBERNETES / "components" / "keda" / "scaled-object.yaml").read_text())
    queries = [trigger["metadata"].get("query") for trigger in scaled["spec"]["triggers"]]
    assert len([query for query in queries if query]) == 2
    for query in filter(None, queries):
        promql_parser.parse(query)
        (metric,) = re.findall(r"serving_\w+", query)
        assert f"`{metric.removesuffix('_sum')}`" in documented
