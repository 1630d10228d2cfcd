"""Resources that model code can reach, with and without a sandbox."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import sandbox
from serving.processes.environment_variables import model_environment
from serving.settings.settings import Settings
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, served, until

SECRETS = {
    "webhook_secret": "hook-secret-of-the-front",
    "_mlflow_tracking_password": "registry-password",
    "_mlflow_tracking_token": "registry-token",
    "_aws_secret_access_key": "cloud-key",
    "_database_url": "postgresql://user:password@host/db",
    "_hf_token": "hub-token",
    "_openai_api_key": "model-key",
}
SPIED = re.compile(r"spied (\{.*\})")


def spied(service: Service, name: str, *paths: Path) -> dict[str, Any]:
    """Return the resources of a model's code, and the paths that it can read or write."""
    row = {"x": 1.0, "act": f"spy:{','.join(map(str, paths))}"}
    response = service.client.post(f"/models/{name}/predict", json=row)
    assert response.status_code == 200, response.text

    def printed() -> Any:
        spied_on = [
            SPIED.fullmatch(str(line["event"])) for line in service.lines() if line.get("model") == name
        ]
        return next((json.loads(match[1]) for match in reversed(spied_on) if match), None)

    spied_on: dict[str, Any] = until(printed)
    return spied_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confined")


@pytest.fixture(scope="module")
def registry(new_registry: NewRegistry, folder: Path) -> Registry:
    result = Registry(new_registry(folder))
    for name in ("actor", "neighbour"):
        result.add(name, factor=2.0)
    return result


@pytest.fixture(scope="module")
def service(registry: Registry, folder: Path) -> Iterator[Service]:
    store = folder / "store"
    store.mkdir(mode=0o755)
    journal = folder / "journal.db"
    journal.touch(0o644)
    settings = {"models": "models:/actor/1", "model_env": "OPENAI_*", "journal_url": f"sqlite:///{journal}"}
    with served(registry.uri, folder, **settings, **SECRETS) as running:
        running.until_ready()
        yield running


def test_row_55_model_code_receives_no_secrets(service: Service) -> None:
    spied_on = spied(service, "actor")
    assert "PATH" in spied_on["variables"]
    assert "OPENAI_API_KEY" in spied_on["variables"]  # allowed by the operator
    secret = ("SERVING_", "MLFLOW_TRACKING_", "AWS_", "DATABASE_", "HF_TOKEN")
    assert not [name for name in spied_on["variables"] if name.startswith(secret) and "FORK" not in name]
    assert (spied_on["environ"], spied_on["memory"], spied_on["traced"]) == (False, False, False)


def test_model_processes_have_no_privileges_and_no_dumps(service: Service) -> None:
    spied_on = spied(service, "actor")
    assert (spied_on["capabilities"], spied_on["no_new_privs"], spied_on["dumpable"]) == (0, 1, 0)
    assert spied_on["umask"] == "0077"


def test_row_58_service_files_are_private_to_its_user(service: Service, folder: Path) -> None:
    service.client.post("/predict", json={"x": 1.0})
    until((folder / "journal.db-wal").exists)
    # Artifacts keep their modes, but only the owner may enter the folder.
    files = [folder / "store", *folder.glob("journal.db*"), *(folder / "store").rglob("*.json")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files if "artifacts" not in path.parts}
    assert len(modes) > 3
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_journal_process_is_unreadable(service: Service) -> None:
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    writers = [
        pid for pid in children if b"serving.journal.writer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert writers
    assert all(os.stat(f"/proc/{pid}").st_uid == 0 for pid in writers)


def test_only_listed_variables_are_passed() -> None:
    passed = {"PATH", "LC_ALL", "OMP_NUM_THREADS", "TF_ENABLE_ONEDNN_OPTS", "LLM_KEY", "LLM_URL"}
    secret = {"TF_TOKEN", "AWS_PROFILE", "SERVING_KEYS_FILE", "MLFLOW_TRACKING_URI", "PGPASSWORD"}
    variables = model_environment(dict.fromkeys(passed | secret, "x"), ["LLM_*"])
    assert {*variables} == passed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with the store of a service and a table that its models may read."""
    root = tmp_path_factory.mktemp("sandbox")
    (root / "allowed").write_text("a table that the model looks up")
    return root


@pytest.fixture(scope="module")
def confined(registry: Registry, home: Path) -> Iterator[Service]:
    allowed = home / "allowed"
    with served(registry.uri, home, models="models:/actor/1", sandbox=True, sandbox_allow=allowed) as running:
        running.until_ready()
        yield running


def test_sandboxed_model_reaches_only_its_own_files(
    confined: Service, registry: Registry, home: Path
) -> None:
    files = [
        Path("/etc/shadow"),
        *registry.folder.glob("*.db"),
        *until(lambda: [*(home / "store").rglob("live/*.json")]),
    ]
    assert len(files) >= 3
    spied_on = spied(confined, "actor", home / "allowed", *files)
    assert spied_on["readable"] == [str(home / "allowed")]
    assert spied_on["writable"] == []
    assert spied_on["scratch"] is True
    assert spied_on["sockets"] == []
    assert (spied_on["environ"], spied_on["memory"], spied_on["traced"], spied_on["signals"]) == (False,) * 4


def test_sandbox_allows_connections_to_listed_ports(registry: Registry, tmp_path: Path) -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as open_, socket.create_server(("127.0.0.1", 0)) as closed:
        if (child := os.fork()) == 0:
            outcomes = []
            try:
                sandbox.confine([], [tmp_path], [open_.getsockname()[1]])
                for server in (open_, closed):
                    try:
                        socket.create_connection(server.getsockname(), timeout=60).close()
                        outcomes.append("connected")
                    except PermissionError:
                        outcomes.append("refused")
                try:
                    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                except PermissionError:
                    outcomes.append("no UDP")
            finally:
                os.write(write, json.dumps(outcomes).encode())
                os._exit(0)
        os.waitpid(child, 0)
    assert json.loads(os.read(read, 1000)) == ["connected", "refused", "no UDP"]


@pytest.mark.parametrize("value", ["data", "70000", "443,relative/path", "0"])
def test_invalid_sandbox_setting_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="neither an absolute path nor a TCP port"):
        Settings(sandbox_allow=value)


def test_service_needs_kernel_support_for_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_abi", lambda: 0)
    with pytest.raises(ValueError, match="SERVING_SANDBOX: cannot confine model processes: this kernel"):
        Settings(sandbox=True)
