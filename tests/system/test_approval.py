"""A service that requires approvals, and the commands by which people give and revoke them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.approval import approvers, private_key, signature
from serving.approval.approvers import Approver
from serving.reference import Reference
from serving.registry import artifact_store
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry, save_scripted_model
from tests.support.service import Service, environment, served, until

NAMES = ("signed", "changed", "replayed", "enrolled")
MODELS = ",".join(f"models:/{name}/Production" for name in NAMES)
PASSPHRASE = "correct horse"


@dataclass
class Approvals:
    """A service, and the approvers that its file names."""

    service: Service
    registry: Registry
    env: dict[str, str]
    file: Path
    key: Path

    def run(self, *arguments: object, **variables: str) -> tuple[int, str, str]:
        """Run a command; return its exit status, standard output and standard error."""
        command = [sys.executable, "-m", "serving", *map(str, arguments)]
        env = self.env | {"APPROVER_PASSPHRASE": PASSPHRASE} | variables
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def model(self, name: str) -> Model:
        return Model(name, self.service, self.registry)

    def sign(self, name: str, version: str, folder: Path, key_file: Path | None = None) -> str:
        """Return the approval of a version with these artifacts for Production, without the command."""
        approver, key = private_key.read(key_file or self.key, PASSPHRASE)
        assert approver
        reference = Reference.parse(f"models:/{name}/Production")
        subject = signature.Subject(name, version, artifact_store.digest(folder), reference.uri)
        key_id = approvers.key_id(private_key.public_bytes(key))
        approval = signature.create(approver, key_id, subject, [reference], datetime.now(UTC))
        return signature.sign(approval, key)

    def tag(self, name: str, version: str, approval: str) -> None:
        self.registry.client.set_model_version_tag(name, version, "serving.approval", approval)


@pytest.fixture(scope="module")
def approvals(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Approvals]:
    folder = tmp_path_factory.mktemp("approvals")
    uri = new_registry(folder)
    file, key = folder / "approvers.json", folder / "alice.key"
    entry = approvers.create("alice", private_key.public_bytes(private_key.create(key, "alice", PASSPHRASE)))
    approvers.write(file, [entry])
    env = environment(uri, folder, models=MODELS, approvers=file)
    with served(uri, folder, models=MODELS, approvers=file) as service:
        yield Approvals(service, Registry(uri), env, file, key)


def test_version_waits_and_goes_live_after_its_approval(approvals: Approvals) -> None:
    model = approvals.model("signed")
    first = model.promote()
    reason = model.until_refused(first, "waiting")
    assert "it has no approval: run `serving approve models:/signed/1 --key FILE`" in reason
    assert model.state["version"] is None
    assert model.until_tagged(first, "waiting")["reason"] == reason
    status, printed, errors = approvals.run("approve", "models:/signed/1", "--key", approvals.key)
    assert (status, errors) == (0, "")
    assert "alice approved signed version 1 for models:/signed/Production" in printed
    state = model.until_live(first)
    assert state["approval"]["approver"] == "alice"
    assert model.is_well(first)
    approvals.service.logged(
        re.compile("signed version 1 is approved for models:/signed/Production by alice")
    )

    second = model.add()
    folder = artifacts_of(approvals.registry, "signed", second)
    approvals.tag("signed", second, approvals.sign("signed", second, folder))
    model.promote(second)
    model.until_live(second)
    model.promote(first)
    model.until_live(first)  # a rollback needs no new approval
    assert model.is_well(first)


def artifacts_of(registry: Registry, name: str, version: str) -> Path:
    return Path(str(registry.client.get_model_version(name, version).source))


def test_changed_artifacts_are_rejected(approvals: Approvals) -> None:
    model = approvals.model("changed")
    first, second = model.add(), model.add()
    for version in (first, second):
        folder = artifacts_of(approvals.registry, "changed", version)
        approvals.tag("changed", version, approvals.sign("changed", version, folder))
    model.promote(first)
    model.until_live(first)
    code = artifacts_of(approvals.registry, "changed", second) / "scripted_model.py"
    code = code if code.exists() else next(code.parent.rglob("*.py"))
    code.write_text(code.read_text() + "\n# changed after the approval\n")
    model.promote(second)
    assert "its artifacts are not those that alice approved" in model.until_refused(second)
    assert model.is_well(first)


def test_replayed_approval_is_rejected_until_it_is_corrected(approvals: Approvals) -> None:
    model, registry = approvals.model("replayed"), approvals.registry
    folder = save_scripted_model(registry.folder, factor=1.0)
    first, second = registry.register("replayed", folder), registry.register("replayed", folder)
    approvals.tag("replayed", first, approvals.sign("replayed", first, folder))
    approvals.tag("replayed", second, approvals.sign("replayed", first, folder))
    model.promote(first)
    model.until_live(first)
    model.promote(second)
    reason = model.until_refused(second)
    assert reason == "its approval is for 'replayed' version '1', not for 'replayed' version '2'"
    approvals.tag("replayed", second, approvals.sign("replayed", second, folder))
    model.until_live(second)


def test_changes_of_the_file_apply_while_the_service_runs(approvals: Approvals) -> None:
    model, file = approvals.model("enrolled"), approvals.file
    before = file.read_bytes()
    key, own = file.with_name("bob.key"), file.with_name("bob.json")
    assert (
        approvals.run("approvers", "create", "bob", "--key", key, "--file", own, "--expires", "90d")[0] == 0
    )
    version = model.add()
    folder = artifacts_of(approvals.registry, "enrolled", version)
    approvals.tag("enrolled", version, approvals.sign("enrolled", version, folder, key))
    model.promote(version)
    assert "the file of approvers has no key" in model.until_refused(version)
    both: list[Approver] = [*approvers.read(file), *approvers.read(own)]
    approvers.write(file, both)
    assert model.until_live(version)["approval"]["approver"] == "bob"
    status, printed, _ = approvals.run("approvers", "list")
    assert (status, [line.split()[1] for line in printed.splitlines()[1:]]) == (0, ["alice", "bob"])

    assert approvals.run("approvers", "revoke", "bob")[0] == 0
    (warning,) = model.until(lambda state: state["warnings"])["warnings"]
    assert "is live, but could not go live again: the file of approvers has no key" in warning
    assert model.is_well(version)

    file.write_text("garbled")
    until(lambda: any("cannot read its file of approvers" in each for each in model.state["warnings"]))
    file.write_bytes(before)
    model.until(lambda state: len(state["warnings"]) == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["approve", "models:/signed/1", "--key", "none.key"], "none.key: No such file"),
        (
            ["approve", "models:/signed", "--key", "KEY"],
            "cannot approve models:/signed: 'models:/signed' names",
        ),
        (
            ["approve", "models:/wine/1", "--key", "KEY"],
            "SERVING_MODELS has no reference to wine: add --reference",
        ),
        (
            ["approve", "models:/signed/1", "--key", "KEY", "--reference", "models:/wine/Production"],
            "models:/wine/Production: the version belongs to the model signed",
        ),
        (["run", "--approvers", "none.json"], "SERVING_APPROVERS: none.json: No such file"),
    ],
)
def test_mistake_is_reported_in_one_line(approvals: Approvals, arguments: list[str], message: str) -> None:
    written = [str(approvals.key) if argument == "KEY" else argument for argument in arguments]
    status, _, errors = approvals.run(*written)
    assert status == 2
    (line,) = errors.splitlines()
    assert message in line


def test_encrypted_key_requires_its_passphrase(approvals: Approvals) -> None:
    arguments = ("approve", "models:/signed/1", "--key", approvals.key)
    status, _, errors = approvals.run(*arguments, APPROVER_PASSPHRASE="")
    assert (status, errors) == (2, f"✗ {approvals.key} is encrypted: set APPROVER_PASSPHRASE\n")
    status, _, errors = approvals.run(*arguments, APPROVER_PASSPHRASE="wrong")
    assert (status, errors) == (2, f"✗ {approvals.key}: the passphrase is wrong\n")


def test_check_reports_a_missing_approval(approvals: Approvals) -> None:
    model = approvals.model("changed")
    version = model.add()
    model.registry.alias("changed", "candidate", version)
    status, printed, _ = approvals.run("check", "models:/changed@candidate")
    assert status == 1
    assert "would not go live: it has no approval" in printed
    assert model.tags(version) == {}
