"""The check of approvals in the promotion path: rollbacks, restarts without the registry, four eyes."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serving.approval import approvers, private_key, signature
from serving.approval.approval_check import ApprovalCheck
from serving.reference import Reference
from serving.registry import artifact_store
from serving.registry.decisions import CandidatePhase
from serving.registry.follower import Follower
from serving.watched_file import WatchedFile
from tests.support.followers import PRODUCTION, FollowerHarness, live, settle
from tests.support.registry import save_scripted_model

pytestmark = pytest.mark.anyio
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate(["alice", "bob"])
}
UNREACHABLE = "http://127.0.0.1:9"


class Office:
    """Approvers with their file, and clocks that a test sets."""

    def __init__(self, harness: FollowerHarness, folder: Path) -> None:
        self.harness, self.file = harness, folder / "approvers.json"
        self.now, self.monotonic = datetime.now(UTC), 0.0
        self.expires = self.now + timedelta(days=1)
        self.enroll(*KEYS)

    def enroll(self, *names: str) -> None:
        """Write a file with these approvers, and let the check see the change."""
        keys = [(name, private_key.public_bytes(KEYS[name])) for name in names]
        approvers.write(self.file, [approvers.create(name, key, self.expires) for name, key in keys])
        self.monotonic += 2

    def check(self, follower: Follower, *, four_eyes: bool = False) -> ApprovalCheck:
        """Require approvals for the versions of a follower."""
        log = logging.getLogger("test")
        file = WatchedFile(
            self.file, approvers.read, ("file", "approvers"), log, lambda: self.monotonic, stale_seconds=60
        )
        registry = follower._registry if four_eyes else None
        check = ApprovalCheck(file, registry, [follower], lambda: self.now)
        follower._gate.checks = [check]
        return check

    def approve(self, version: str, name: str = "alice", reference: str = PRODUCTION) -> None:
        client = self.harness.registry.client
        digest = artifact_store.digest(Path(str(client.get_model_version("actor", version).source)))
        key_id = approvers.key_id(private_key.public_bytes(KEYS[name]))
        subject = signature.Subject("actor", version, digest, reference)
        approval = signature.create(name, key_id, subject, [Reference.parse(reference)], self.now)
        client.set_model_version_tag("actor", version, signature.TAG, signature.sign(approval, KEYS[name]))


@pytest.fixture
def office(harness: FollowerHarness, tmp_path: Path) -> Office:
    return Office(harness, tmp_path)


async def serve(office: Office, **settings: Any) -> tuple[Follower, ApprovalCheck]:
    """Start a front with two approved versions, the second of which is live."""
    follower = office.harness.follow(**settings)
    check = office.check(follower)
    for factor in (2.0, 3.0):
        version = office.harness.promote(factor=factor)
        office.approve(version)
        await settle(follower)
    assert live(follower) == "2"
    return follower, check


def refusal(follower: Follower) -> tuple[str | None, CandidatePhase, str]:
    assert follower.candidate
    return follower.candidate.version.version, follower.candidate.state, follower.candidate.reason


def revoke(office: Office) -> None:
    office.enroll("bob")


@pytest.mark.parametrize("probation", [0, 600], ids=["drained", "warm"])
async def test_rollback_needs_no_new_approval_unless_the_key_is_revoked(
    office: Office, probation: int
) -> None:
    follower, check = await serve(office, probation_seconds=probation)
    warm = follower.slot.warm
    office.now = office.expires  # an expired key is no obstacle
    office.harness.registry.promote("actor", "1")
    await settle(follower)
    assert live(follower) == "1"
    assert (follower.slot.live is warm) == bool(probation)
    revoke(office)
    office.harness.registry.promote("actor", "2")
    await settle(follower)
    assert live(follower) == "1"
    number, phase, reason = refusal(follower)
    assert (number, phase) == ("2", CandidatePhase.REJECTED)
    assert "the file of approvers has no key" in reason
    (warning,) = check.status(follower.slot, False).warnings
    assert "actor version 1 is live, but could not go live again" in warning
    assert check.status(follower.slot, True).warnings == ()


async def test_start_without_the_registry_requires_the_last_approval(office: Office, tmp_path: Path) -> None:
    follower, _ = await serve(office)
    office.approve("2", "bob")  # it is live, and its approver changes
    await settle(follower)
    await follower._tasks.join()
    revoke(office)
    for store_has_bob, expected in ((True, "2"), (False, None)):
        office.enroll(*(["bob"] if store_has_bob else []))
        offline = office.harness.follow(tracking_uri=UNREACHABLE)
        office.check(offline)
        await settle(offline)
        assert live(offline) == expected


async def test_expired_key_approves_no_new_version(office: Office) -> None:
    follower, check = await serve(office)
    third = office.harness.promote(factor=4.0)
    office.approve(third)
    office.now, before = office.expires, office.now
    await settle(follower)
    assert "of alice expired on" in refusal(follower)[2]
    office.now = before  # the clock was wrong
    check.tick()
    await settle(follower)
    assert live(follower) == third


async def test_unreadable_file_stops_promotions_after_a_minute(office: Office) -> None:
    follower, check = await serve(office)
    content = office.file.read_bytes()
    office.file.unlink()
    office.monotonic += 2
    third = office.harness.promote(factor=4.0)
    office.approve(third)
    await settle(follower)
    assert live(follower) == third
    office.monotonic += 61
    fourth = office.harness.promote(factor=5.0)
    office.approve(fourth)
    await settle(follower)
    assert refusal(follower)[:2] == (fourth, CandidatePhase.WAITING)
    assert any("every promotion waits" in text for text in check.status(follower.slot, False).warnings)
    office.file.write_bytes(content)
    office.monotonic += 2
    check.tick()
    await settle(follower)
    assert live(follower) == fourth


async def test_approval_of_another_reference_is_rejected(office: Office) -> None:
    follower, _ = await serve(office)
    third = office.harness.promote(factor=4.0)
    office.approve(third, reference="models:/actor@shadow")
    await settle(follower)
    assert refusal(follower)[2] == f"alice approved it for models:/actor@shadow, not for {PRODUCTION}"


@pytest.mark.parametrize(
    ("user", "approver", "reason"),
    [
        ("alice", "bob", None),
        ("alice", "alice", "alice logged it and approved it"),
        ("ALICE@example.org", "alice", "alice logged it and approved it"),
        ("EXAMPLE\\alice", "alice", "alice logged it and approved it"),
        (None, "alice", "MLflow does not show who logged it"),
    ],
)
async def test_four_eyes_require_another_person(
    office: Office, user: str | None, approver: str, reason: str | None
) -> None:
    harness = office.harness
    follower = harness.follow()
    office.check(follower, four_eyes=True)
    client, folder = harness.registry.client, save_scripted_model(harness.registry.folder, factor=2.0)
    run = client.create_run("0", tags={"mlflow.user": user}).info.run_id if user else None
    client.create_registered_model("actor")
    version = str(client.create_model_version("actor", str(folder), run_id=run).version)
    office.approve(version, approver)
    harness.registry.promote("actor", version)
    await settle(follower)
    assert live(follower) == (None if reason else version)
    if reason:
        assert reason in refusal(follower)[2]
