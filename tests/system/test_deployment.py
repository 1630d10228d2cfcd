"""Files below deploy/ are linted, render with kustomize, are valid, and agree with the service."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from fastapi import FastAPI

from benchmarks.postgres import Postgres
from serving.app import create_app
from serving.auth import api_keys
from serving.auth.api_keys import Scope
from serving.settings.settings import OPTIONS, Settings, env_name
from tests.support import prometheus_server
from tests.support.faulty_proxy import free_port
from tests.support.service import Service, served, until

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
RENDERED = ["base", "overlays/postgres"]
VERSIONS = ["1.30", "1.33", "1.37"]
# Kinds of optional operators, whose schemas are not part of Kubernetes.
OF_OPERATORS = {"ScaledObject", "ServiceMonitor", "ServingRuntime", "InferenceService"}
OURS = "mlflow-serving-front"
Manifest = dict[str, Any]


def tool(name: str, *arguments: object) -> str:
    """Run a tool of the environment, and return its output; fail on any complaint."""
    command: list[str | Path] = [Path(sys.executable).with_name(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def rendered(folder: str) -> list[Manifest]:
    """Return the manifests that kustomize renders from a folder."""
    return [*yaml.safe_load_all(tool("kubectl", "kustomize", KUBERNETES / folder))]


def kserve() -> list[Manifest]:
    return [yaml.safe_load(file.read_text()) for file in sorted((KUBERNETES / "kserve").glob("*.yaml"))]


def every_manifest() -> list[Manifest]:
    return [*(manifest for folder in RENDERED for manifest in rendered(folder)), *kserve()]


def of_kind(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Return name and specification of the pods in manifests."""
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
        if manifest["kind"] == "ServingRuntime":
            yield manifest["metadata"]["name"], manifest["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Return the containers, init containers included, with their pods."""
    for _, pod in pods(manifests):
        yield from ((pod, container) for container in (*pod.get("initContainers", ()), *pod["containers"]))


def fronts() -> list[tuple[Manifest, Manifest, dict[str, str]]]:
    """Return pod, container and environment of the fronts."""
    result = []
    for manifests in (*map(rendered, RENDERED), kserve()):
        maps = {item["metadata"]["name"]: item["data"] for item in of_kind("ConfigMap", manifests)}
        for pod, container in containers(manifests):
            if OURS not in container["image"] or "command" in container:
                continue
            env = {item["name"]: item["value"] for item in container.get("env", [])}
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    env |= maps[source["configMapRef"]["name"]]
            result.append((pod, container, env))
    return result


# -- the image


def test_hadolint_reports_nothing() -> None:
    assert tool("hadolint", ROOT / "deploy" / "Dockerfile") == ""


def test_files_copied_into_image_are_in_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.removeprefix('./')}" in ignored, source


def test_image_runs_as_unprivileged_user() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entry) == ["tini", "--", "serving"]


def is_healthy(service: Service, **settings: object) -> bool:
    """Run the image's health check against a service; test_access covers TLS."""
    (check,) = re.findall(r"^HEALTHCHECK .*?CMD (.*)$", DOCKERFILE, re.MULTILINE)
    image_env = {"PATH": str(Path(sys.executable).parent), "SERVING_PORT": str(service.address[1])}
    env = (
        service.env | image_env | {f"SERVING_{name.upper()}": str(value) for name, value in settings.items()}
    )
    return subprocess.run(json.loads(check), env=env, check=False).returncode == 0


def test_health_check_passes_only_on_the_service_port(service_with_keys: Service) -> None:
    assert is_healthy(service_with_keys)
    assert not is_healthy(service_with_keys, port=free_port())
    assert not is_healthy(service_with_keys, tls_cert="cert.pem")


def test_image_sets_only_existing_settings() -> None:
    named = set(re.findall(r"\b(SERVING_\w+)=", DOCKERFILE))
    assert named
    assert named <= {*map(env_name, OPTIONS)}


def test_image_has_the_packages_of_all_extras() -> None:
    locked = (ROOT / "constraints.txt").read_text() + (ROOT / "constraints-extras.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {k: v for k, v in project["optional-dependencies"].items() if k not in ("dev", "ray")}
    assert len(extras) > 7
    for requirement in chain.from_iterable(extras.values()):
        name = re.split(r"[\[<>=;, ]", requirement)[0].lower()
        assert name == project["name"] or re.search(rf"^{name}==", locked, re.MULTILINE), name


# -- Kubernetes


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", RENDERED)
def test_rendered_manifests_are_valid(folder: str, version: str) -> None:
    for manifest in rendered(folder):
        if manifest["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kserve_runtime_pod_is_valid(version: str) -> None:
    (runtime,) = of_kind("ServingRuntime", kserve())
    assert runtime["spec"]["protocolVersions"] == ["v1", "v2"]
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


def composed(folder: Path, base: str, components: Sequence[str]) -> str:
    """Write a kustomization of a folder of this project and components."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    lists = {
        "resources": [f"kubernetes/{base}"],
        "components": [f"kubernetes/components/{item}" for item in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lists))
    return str(folder)


@pytest.mark.parametrize(
    ("base", "components"),
    [
        ("base", ["keys"]),
        ("base", ["monitoring"]),
        ("base", ["monitoring", "keys"]),
        ("overlays/postgres", ["keys"]),  # it includes the other
        ("overlays/postgres", ["grpc", "keys"]),
    ],
)
def test_components_combine(base: str, components: list[str], tmp_path: Path) -> None:
    manifests = rendered(composed(tmp_path, base, components))
    for item in manifests:
        if item["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(item, VERSIONS[-1], strict=True)
    (front,) = of_kind("StatefulSet", [item for item in manifests if item["metadata"]["name"] == "serving"])
    ((pod, container),) = containers([front])
    keys = {"name": "SERVING_KEYS_FILE", "value": "/etc/serving/keys.json"}
    assert (keys in container.get("env", [])) is ("keys" in components)
    assert ("keys" in {item["name"] for item in pod["volumes"]}) is ("keys" in components)
    monitors = of_kind("ServiceMonitor", manifests)
    assert len(monitors) == ("monitoring" in components or base != "base")
    for monitor in monitors:
        (endpoint,) = monitor["spec"]["endpoints"]
        assert ("authorization" in endpoint) is ("keys" in components)


def test_network_policy_allows_grpc(tmp_path: Path) -> None:
    manifests = rendered(composed(tmp_path, "base", ["grpc"]))
    ((_, container),) = containers(manifests)
    assert {"name": "SERVING_GRPC_PORT", "value": "8001"} in container["env"]
    assert {"name": "grpc", "containerPort": 8001, "protocol": "TCP"}.items() >= container["ports"][0].items()
    (policy,) = of_kind("NetworkPolicy", manifests)
    rule, _ = policy["spec"]["ingress"]
    assert [item["port"] for item in rule["ports"]] == ["http", "grpc"]
    (service,) = (
        item for item in of_kind("Service", manifests) if item["metadata"]["name"] == "serving-grpc"
    )
    assert [item["targetPort"] for item in service["spec"]["ports"]] == ["grpc"]
    assert not service["spec"].get("publishNotReadyAddresses")


def test_keys_before_monitoring_are_rejected(tmp_path: Path) -> None:
    folder = composed(tmp_path, "base", ["keys", "monitoring"])
    with pytest.raises(AssertionError, match="list keys after monitoring"):
        rendered(folder)


def test_containers_are_unprivileged_and_limited() -> None:
    pairs = [*containers(every_manifest())]
    assert len(pairs) == 6
    for pod, container in pairs:
        context = pod.get("securityContext", {}) | container["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for bound in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} == {*container["resources"][bound]}
        if container not in pod.get("initContainers", ()):
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= {*container}
        assert re.search(r":[\d.]+", container["image"]), "an image without a version"


def test_ephemeral_storage_of_pods_is_bounded() -> None:
    for name, pod in pods(every_manifest()):
        scratch = [item["emptyDir"] for item in pod["volumes"] if "emptyDir" in item]
        limits = [item["resources"]["limits"] for item in pod["containers"]]
        assert scratch, name
        assert sum(size(item["sizeLimit"]) for item in scratch) < size(limits[0]["ephemeral-storage"]), name


def test_pods_have_no_token_or_service_variables() -> None:
    (service,) = of_kind("InferenceService", kserve())
    project_pods = pods([item for folder in RENDERED for item in rendered(folder)])
    for name, pod in (*project_pods, ("KServe's", service["spec"]["predictor"])):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name


def test_passwords_are_only_in_secrets() -> None:
    for _, container in containers(every_manifest()):
        for entry in container.get("env", []):
            assert not re.search("PASSWORD|_KEY$", entry["name"]) or "secretKeyRef" in entry["valueFrom"]
    assert not of_kind("Secret", every_manifest())


def test_selectors_match_pods() -> None:
    manifests = rendered("overlays/postgres")
    workloads = [item for item in manifests if item["kind"] in ("StatefulSet", "Deployment")]
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in workloads]
    services, policies = of_kind("Service", manifests), of_kind("NetworkPolicy", manifests)
    (budget,) = of_kind("PodDisruptionBudget", manifests)
    selectors = [item["spec"]["selector"] for item in services]
    selectors += [item["spec"]["podSelector"]["matchLabels"] for item in policies]
    for selector in (*selectors, budget["spec"]["selector"]["matchLabels"]):
        assert any(selector.items() <= item.items() for item in labels), selector
    (monitor,) = of_kind("ServiceMonitor", manifests)
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert [
        item["metadata"]["name"]
        for item in services
        if wanted.items() <= item["metadata"].get("labels", {}).items()
    ] == ["serving-pods"]
    (scaler,) = of_kind("HorizontalPodAutoscaler", manifests)
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in {item["metadata"]["name"] for item in of_kind(target["kind"], manifests)}


def test_secret_variables_are_optional() -> None:
    for _, container, _ in fronts():
        (secret,) = (item["secretRef"] for item in container["envFrom"] if "secretRef" in item)
        assert secret == {"name": "serving-secrets", "optional": True}


def test_disruption_budget_fits_minimum_replicas() -> None:
    (scaler,) = of_kind("HorizontalPodAutoscaler", rendered("base"))
    (budget,) = of_kind("PodDisruptionBudget", rendered("base"))
    assert scaler["spec"]["minReplicas"] - budget["spec"]["maxUnavailable"] >= 2


def test_dns_is_allowed_with_node_local_caches() -> None:
    policies = [item for item in of_kind("NetworkPolicy", every_manifest()) if item["spec"].get("egress")]
    assert len(policies) == 3
    for policy in policies:
        udp, tcp = ({"port": 53, "protocol": item} for item in ("UDP", "TCP"))
        (rule,) = (item for item in policy["spec"]["egress"] if udp in item["ports"])
        assert tcp in rule["ports"]
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"], policy["metadata"]["name"]


def test_applying_again_keeps_the_scale() -> None:
    (fronts,) = of_kind("StatefulSet", rendered("base"))
    assert "replicas" not in fronts["spec"]


# -- in accord with the service


@cache
def status(path: str) -> int:
    """Return the status of an admin route of a service with nothing live."""
    return status_of(create_app(Settings(tracking_uri="sqlite:////nowhere/mlflow.db")), path)


def status_of(app: FastAPI, path: str, host: str = "it") -> int:
    """Return the status of a request to an application under this host name."""

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.get(path)).status_code

    return asyncio.run(ask())


def test_there_are_three_fronts() -> None:
    assert len(fronts()) == 3


def test_front_variables_are_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, _, env in fronts():
        assert {*env} <= {*map(env_name, OPTIONS), "OMP_NUM_THREADS"}
        for name, value in env.items():
            monkeypatch.setenv(name, value.replace("{{.Name}}", "iris"))
        settings = Settings()
        assert settings.host == "0.0.0.0"
        assert str(settings.models[0]) == "models:/iris/Production"


def test_ports_and_probes_match_the_service() -> None:
    assert (status("/livez"), status("/readyz"), status("/metrics")) == (200, 503, 200)
    for _, container, env in fronts():
        ports = {item["name"]: item["containerPort"] for item in container["ports"]}
        main, admin = int(env["SERVING_PORT"]), int(env["SERVING_ADMIN_PORT"])
        assert main in ports.values()
        assert ports.get("admin", admin) == admin
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            request = container[probe]["httpGet"]
            assert ports.get(request["port"], request["port"]) == main
            assert request["path"] == ("/readyz" if probe == "readinessProbe" else "/livez")


def size(quantity: str) -> int:
    """Return a Kubernetes quantity in bytes."""
    return int(quantity[:-2]) * 1024 ** (["Ki", "Mi", "Gi"].index(quantity[-2:]) + 1)


def test_memory_and_threads_suffice_during_promotion() -> None:
    for _, container, env in fronts():
        limits = container["resources"]["limits"]
        live_coming_up_and_warm = 3 * int(env["SERVING_MAX_PROCESS_BYTES"])
        assert size("256Mi") + live_coming_up_and_warm <= size(limits["memory"])
        assert env["OMP_NUM_THREADS"] == limits["cpu"]


def test_grace_period_covers_draining() -> None:
    (service,) = of_kind("InferenceService", kserve())
    for pod, container, env in fronts():
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        http_then_grpc_then_journal = 3 * float(env["SERVING_DRAIN_SECONDS"])
        needed = float(hook[-1]) + http_then_grpc_then_journal
        owner = pod if "terminationGracePeriodSeconds" in pod else service["spec"]["predictor"]
        assert owner["terminationGracePeriodSeconds"] >= needed + 10


def test_writable_paths_are_on_volumes() -> None:
    for _, container, env in fronts():
        assert {"/tmp", "/var/lib/serving"} <= {item["mountPath"] for item in container["volumeMounts"]}
        assert env.get("SERVING_STORE_DIR", "/var/lib/serving/store").startswith("/var/lib/serving/")


def test_store_of_pods_is_persistent() -> None:
    (fronts_set,) = of_kind("StatefulSet", rendered("base"))
    claims = {item["metadata"]["name"] for item in fronts_set["spec"]["volumeClaimTemplates"]}
    (container,) = fronts_set["spec"]["template"]["spec"]["containers"]
    assert {
        item["name"] for item in container["volumeMounts"] if item["mountPath"] == "/var/lib/serving"
    } == claims


# -- in accord with MLflow


def mlflow() -> Manifest:
    """Return the pod of the MLflow server."""
    (pod,) = (pod for name, pod in pods(rendered("overlays/postgres")) if name == "mlflow")
    return pod


def test_mlflow_allows_hosts_of_probes_and_fronts(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.fastapi_security import init_fastapi_security

    (container,) = mlflow()["containers"]
    (names,) = (item.split("=")[1] for item in container["args"] if item.startswith("--allowed-hosts="))
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", names)
    app = FastAPI()
    init_fastapi_security(app)
    called = {httpx.URL(env["MLFLOW_TRACKING_URI"]).netloc.decode() for _, _, env in fronts()}
    assert len(called) == 2
    for host in called:
        assert status_of(app, "/api", host) == 404  # the host is allowed, but the path does not exist
    assert status_of(app, "/api", "evil.example.com") == 403
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert status_of(app, container[probe]["httpGet"]["path"], "10.1.2.3:5000") == 404


def test_mlflow_may_send_webhooks_within_the_cluster() -> None:
    from mlflow.environment_variables import _MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS as TO_PRIVATE
    from mlflow.environment_variables import _MLFLOW_WEBHOOK_ALLOWED_SCHEMES as SCHEMES
    from mlflow.environment_variables import MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY as ENCRYPTION

    (container,) = mlflow()["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert (env[SCHEMES.name], env[TO_PRIVATE.name], env[ENCRYPTION.name]) == ("http", "true", None)


@pytest.mark.timeout(300)
def test_older_schema_is_migrated_before_mlflow_starts(postgres: Postgres) -> None:
    import mlflow.store.db.utils as databases
    from mlflow.store.tracking.dbmodels.initial_models import Base

    (migrate,) = mlflow()["initContainers"]
    (server,) = mlflow()["containers"]
    where = next(item for item in migrate["env"] if item["name"] == "MLFLOW_BACKEND_STORE_URI")
    assert where in server["env"]
    assert migrate["args"] == [f"$({where['name']})"]
    uri = postgres.create("older").replace("postgresql", where["value"].partition("://")[0])
    engine = databases.create_sqlalchemy_engine(uri)
    Base.metadata.create_all(engine)  # the schema of the first release
    tini, end, program, *words = migrate["command"]
    assert (tini, end) == ("tini", "--")
    tool(program, *words, uri)
    databases._verify_schema(engine)
    engine.dispose()


# -- Prometheus


@pytest.fixture(scope="module")
def service_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service with API keys and an admin port, as the components do, without a registry."""
    folder = tmp_path_factory.mktemp("keyed")
    key, record = api_keys.create_key("prometheus", Scope.ADMIN)
    api_keys.write(folder / "keys.json", [record])
    settings = {"keys_file": folder / "keys.json", "admin_port": free_port(), "_key": key}
    with served("http://127.0.0.1:1", folder, **settings) as service:
        yield service


def scraping_as(monitor: Manifest, services: list[Manifest], service: Service) -> Manifest:
    """Return the scrape job that the operator derives from a ServiceMonitor and its services."""
    spec = monitor["spec"]
    (endpoint,) = spec["endpoints"]
    (selected,) = (
        item for item in services if spec["selector"]["matchLabels"].items() <= labels_of(item).items()
    )
    (port,) = (item for item in selected["spec"]["ports"] if item["name"] == endpoint["port"])
    assert port["targetPort"] == "admin"
    job = {"job_name": labels_of(selected)[spec["jobLabel"]], "metrics_path": endpoint["path"]}
    if sent := endpoint.get("authorization"):
        assert {*sent["credentials"]} == {"name", "key"}
        job["authorization"] = {"type": sent["type"], "credentials": service.env["KEY"]}
    return job | {"static_configs": [{"targets": [f"127.0.0.1:{service.env['SERVING_ADMIN_PORT']}"]}]}


def labels_of(manifest: Manifest) -> dict[str, str]:
    labels: dict[str, str] = manifest["metadata"].get("labels", {})
    return labels


def test_prometheus_scrapes_with_the_key_of_the_monitor(service_with_keys: Service, tmp_path: Path) -> None:
    jobs: list[Any] = []
    for components in (["monitoring"], ["monitoring", "keys"]):
        manifests = rendered(composed(tmp_path / components[-1], "base", components))
        (monitor,) = of_kind("ServiceMonitor", manifests)
        job = scraping_as(monitor, of_kind("Service", manifests), service_with_keys)
        assert job["job_name"] == "serving"
        jobs.append(job | {"job_name": components[-1]})
    with prometheus_server.prometheus(tmp_path, {"scrape_configs": jobs}) as client:
        ups = until(lambda: found if len(found := prometheus_server.found(client, "up")) == 2 else None)
        assert {up["metric"]["job"]: up["value"][1] for up in ups} == {"monitoring": "0", "keys": "1"}
        errors = {item["scrapePool"]: item["lastError"] for item in targets(client)}
    assert "401" in errors["monitoring"]
    assert errors["keys"] == ""


def targets(client: httpx.Client) -> list[dict[str, Any]]:
    active: list[dict[str, Any]] = client.get("/targets").json()["data"]["activeTargets"]
    return active


def test_documented_command_creates_the_alert_rules() -> None:
    guide = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    (command,) = re.findall(r"^(\{ printf .*?\}) \| kubectl apply", guide, re.MULTILINE | re.DOTALL)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    rule = yaml.safe_load(done.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
