"""Approvals: every kind of tampering is rejected, and the approvers' file accepts no ambiguous entry."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

from serving.approval import approvers, private_key, signature
from serving.approval.approvers import Approver
from serving.approval.signature import ApprovalInvalid, Subject
from serving.cli import approvers as commands
from serving.errors import ApproversFileError
from serving.reference import Reference
from serving.registry import artifact_store

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
EXPIRES = NOW + timedelta(days=30)
PRODUCTION = "models:/iris/Production"
L = 2**252 + 27742317777372353535851937790883648493
"""The order of the group of Ed25519 (RFC 8032, section 5.1)."""
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate(["alice", "bob"])
}
MALLORY = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)


def entry(name: str, key: Ed25519PrivateKey, expires: datetime | None = EXPIRES) -> Approver:
    return approvers.create(name, private_key.public_bytes(key), expires)


def key_of(name: str) -> str:
    return approvers.key_id(private_key.public_bytes(KEYS[name]))


@dataclass
class Case:
    """A version, its artifacts on the disk, and all that decides whether it is approved."""

    folder: Path
    tag: str = ""
    model: str = "iris"
    version: str | None = "7"
    reference: str = PRODUCTION
    approvers: list[Approver] = field(
        default_factory=lambda: [entry(name, key) for name, key in KEYS.items()]
    )
    now: datetime = NOW
    has_served: bool = False

    def subject(self) -> Subject:
        reference = signature.canonical_reference(Reference.parse(self.reference))
        return Subject(self.model, self.version, artifact_store.digest(self.folder), reference)

    def approve(self, name: str = "alice", *references: str, at: datetime = NOW) -> str:
        uris = [*map(Reference.parse, references or (PRODUCTION,))]
        approval = signature.create(name, key_of(name), self.subject(), uris, at)
        return signature.sign(approval, KEYS[name])

    def check(self) -> None:
        approval, approver = signature.verify(self.tag, self.subject(), tuple(self.approvers))
        signature.check_expiry(approval, approver, self.now, has_served=self.has_served)

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.tag)
        return found

    def edit(self, **fields: Any) -> None:
        """Change fields of the tag, whose signature stays."""
        self.tag = canonical(self.fields | fields)

    def sign_again(
        self, key: Ed25519PrivateKey, /, context: bytes = b"serving.approval v1\n", **fields: Any
    ) -> None:
        """Change fields of the tag, and sign them with a key."""
        signed = {name: value for name, value in (self.fields | fields).items() if name != "signature"}
        self.tag = canonical(signed | {"signature": key.sign(context + canonical(signed).encode()).hex()})


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    folder = tmp_path / "artifacts"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data" / "weights.bin").write_bytes(bytes(range(100)))
    (folder / "data" / "more.bin").write_bytes(b"more")
    approved = Case(folder)
    approved.tag = approved.approve()
    approved.check()
    return approved


# -- tampering

Tamper = Callable[[Case], object]


def artifacts(change: Callable[[Path, Path], object]) -> Tamper:
    return lambda case: change(case.folder / "data" / "weights.bin", case.folder / "data" / "more.bin")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])


ARTIFACTS: dict[str, Tamper] = {
    "one bit of a file": artifacts(lambda first, _: flip(first)),
    "a byte appended": artifacts(lambda first, _: first.write_bytes(first.read_bytes() + b"\0")),
    "a file truncated": artifacts(lambda first, _: first.write_bytes(first.read_bytes()[:-1])),
    "a file added": artifacts(lambda first, _: (first.parent / "code.py").write_text("import os")),
    "an empty file added": artifacts(lambda first, _: (first.parent / "empty").touch()),
    "a file removed": artifacts(lambda first, _: first.unlink()),
    "a file renamed": artifacts(lambda first, _: first.rename(first.with_name("weights.pkl"))),
    "a file moved": artifacts(lambda first, _: first.rename(first.parent.parent / first.name)),
    "two files swapped": artifacts(swap),
    "the MLmodel changed": lambda case: (case.folder / "MLmodel").write_text(
        "flavors: {python_function: {}}"
    ),
}


def as_subject(**fields: Any) -> Tamper:
    return lambda case: [setattr(case, name, value) for name, value in fields.items()]


SUBJECTS: dict[str, Tamper] = {
    "replayed for a later version": as_subject(version="8"),
    "replayed for an earlier version": as_subject(version="6"),
    "replayed for version 77": as_subject(version="77"),
    "replayed for a version with a leading zero": as_subject(version="07"),
    "replayed for a logged model": as_subject(version=None),
    "replayed for another model": as_subject(model="wine"),
    "replayed for a model whose name looks alike": as_subject(model="іris"),
    "replayed for a model in upper case": as_subject(model="IRIS"),
    "replayed for a model with a space": as_subject(model="iris "),
    "replayed for an alias": as_subject(reference="models:/iris@champion"),
    "replayed for another stage": as_subject(reference="models:/iris/Staging"),
    "replayed for the latest version": as_subject(reference="models:/iris/latest"),
    "replayed for the version's number": as_subject(reference="models:/iris/7"),
    "replayed for an alias named like the stage": as_subject(reference="models:/iris@Production"),
    "replayed for another model's reference": as_subject(reference="models:/wine/Production"),
}


def edited(**fields: Any) -> Tamper:
    return lambda case: case.edit(**fields)


OTHER_DIGEST = "sha256:" + "0" * 64
EDITS: dict[str, Tamper] = {
    "another approver's name": edited(approver="bob"),
    "another approver's key": edited(key=key_of("bob")),
    "another approver": edited(approver="bob", key=key_of("bob")),
    "an unknown key": edited(key="0" * 16),
    "an edited model": lambda case: (case.edit(model="wine"), setattr(case, "model", "wine")),
    "an edited version": lambda case: (case.edit(version="8"), setattr(case, "version", "8")),
    "an edited digest": lambda case: (
        flip(case.folder / "data" / "weights.bin"),
        case.edit(digest=artifact_store.digest(case.folder)),
    ),
    "another digest": edited(digest=OTHER_DIGEST),
    "a reference added": lambda case: (
        case.edit(references=[*case.fields["references"], "models:/iris@champion"]),
        setattr(case, "reference", "models:/iris@champion"),
    ),
    "a later time": edited(approved_at="2026-11-28T12:00:01Z"),
    "null as the version": edited(version=None),
}


def text(change: Callable[[str], str]) -> Tamper:
    return lambda case: setattr(case, "tag", change(case.tag))


def with_duplicate(name: str, value: str) -> Tamper:
    return text(lambda tag: tag[:-1] + f',"{name}":{json.dumps(value)}}}')


FORMS: dict[str, Tamper] = {
    "no JSON": text(lambda tag: "approved"),
    "an empty object": text(lambda tag: "{}"),
    "a list": text(lambda tag: f"[{tag}]"),
    "a string": text(json.dumps),
    "a number": text(lambda tag: "1"),
    "true": text(lambda tag: "true"),
    "NaN": text(lambda tag: "NaN"),
    "deep nesting": text(lambda tag: "[" * 4900),
    "a truncated tag": text(lambda tag: tag[:-1]),
    "two approvals": text(lambda tag: tag + tag),
    "a space at the start": text(lambda tag: " " + tag),
    "a space at the end": text(lambda tag: tag + " "),
    "a line break at the end": text(lambda tag: tag + "\n"),
    "a byte order mark": text(lambda tag: "\ufeff" + tag),
    "a NUL at the end": text(lambda tag: tag + "\0"),
    "an indented tag": text(lambda tag: json.dumps(json.loads(tag), sort_keys=True, indent=1)),
    "spaces after separators": text(lambda tag: json.dumps(json.loads(tag), sort_keys=True)),
    "fields in another order": text(
        lambda tag: json.dumps(dict(reversed(json.loads(tag).items())), separators=(",", ":"))
    ),
    "an escaped letter": text(lambda tag: tag.replace('"iris"', '"\\u0069ris"')),
    "an escaped slash": text(lambda tag: tag.replace("models:/", "models:\\/")),
    "a repeated field": with_duplicate("model", "iris"),
    "a repeated field with another value": with_duplicate("version", "8"),
    "a repeated signature": with_duplicate("signature", "0" * 128),
    "an additional field": edited(note="approved"),
    "an additional field without a name": edited(**{"": ""}),
    "a field in upper case": text(lambda tag: tag.replace('"model"', '"Model"')),
    "a number as the version": edited(version=7),
    "a list as the model": edited(model=["iris"]),
    "a text as the references": edited(references=PRODUCTION),
    "no references": edited(references=[]),
    "null as a reference": edited(references=[None]),
    "too many references": edited(references=[f"models:/iris@{n}" for n in range(21)]),
    "a digest of another kind": edited(digest="md5:" + "0" * 32),
    "a digest in upper case": lambda case: case.edit(digest=case.fields["digest"].upper()),
    "a time in another zone": edited(approved_at="2026-11-28T12:00:00+00:00"),
    "a time with a fraction": edited(approved_at="2026-11-28T12:00:00.0Z"),
    "a name with a line break": edited(approver="alice\n"),
    "a name that looks alike": edited(approver="аlice"),
    "a key in upper case": lambda case: case.edit(key=case.fields["key"].upper()),
    "letters that are not escaped": lambda case: (
        setattr(case, "model", "Größe"),
        setattr(
            case, "tag", json.dumps(json.loads(case.approve()), separators=(",", ":"), ensure_ascii=False)
        ),
    ),
    "an oversized tag": lambda case: case.sign_again(KEYS["alice"], model="i" * 5000),
    **{
        f"no {name}": text(
            lambda tag, name=name: canonical(  # type: ignore[misc]
                {key: value for key, value in json.loads(tag).items() if key != name}
            )
        )
        for name in (
            "approver",
            "key",
            "model",
            "version",
            "digest",
            "references",
            "approved_at",
            "signature",
        )
    },
}


def with_signature(change: Callable[[bytes], str]) -> Tamper:
    return lambda case: case.edit(signature=change(bytes.fromhex(case.fields["signature"])))


def add_order(signed: bytes) -> str:
    """Return the signature with a second form of its scalar, which lax implementations accept."""
    return (signed[:32] + (int.from_bytes(signed[32:], "little") + L).to_bytes(32, "little")).hex()


def borrow(case: Case) -> None:
    other = replace(case, version="6")
    case.edit(signature=json.loads(other.approve())["signature"])


SIGNATURES: dict[str, Tamper] = {
    "a signature with a bit flipped": with_signature(
        lambda signed: bytes([signed[0] ^ 1, *signed[1:]]).hex()
    ),
    "a scalar with a bit flipped": with_signature(
        lambda signed: bytes([*signed[:40], signed[40] ^ 1, *signed[41:]]).hex()
    ),
    "a scalar increased by the group's order": with_signature(add_order),
    "a signature of zeros": with_signature(lambda signed: "0" * 128),
    "the identity as the signature": with_signature(lambda signed: "01" + "0" * 126),
    "a signature with its halves swapped": with_signature(lambda signed: (signed[32:] + signed[:32]).hex()),
    "a truncated signature": with_signature(lambda signed: signed[:-1].hex()),
    "a longer signature": with_signature(lambda signed: signed.hex() + "00"),
    "an empty signature": edited(signature=""),
    "a signature in upper case": with_signature(lambda signed: signed.hex().upper()),
    "a signature in base64": with_signature(lambda signed: base64.b64encode(signed).decode()),
    "the signature of another version's approval": borrow,
    "a signature without the context": lambda case: case.sign_again(KEYS["alice"], b""),
    "a signature for another purpose": lambda case: case.sign_again(KEYS["alice"], b"serving.webhook v1\n"),
    "a signature of another protocol version": lambda case: case.sign_again(
        KEYS["alice"], b"serving.approval v2\n"
    ),
    "a signature by an unknown key": lambda case: case.sign_again(MALLORY),
    "a signature by another approver's key": lambda case: case.sign_again(KEYS["bob"]),
    "another approver's key under this name": lambda case: case.sign_again(KEYS["bob"], key=key_of("bob")),
    "an unknown key under its own id": lambda case: case.sign_again(
        MALLORY, key=approvers.key_id(private_key.public_bytes(MALLORY))
    ),
}


def expired(case: Case) -> None:
    case.now = EXPIRES


def dated_later(case: Case) -> None:
    case.now = EXPIRES + timedelta(days=2)
    case.tag, case.has_served = case.approve(at=EXPIRES + timedelta(days=1)), True


def dated_impossibly(case: Case) -> None:
    case.sign_again(KEYS["alice"], approved_at="2026-02-31T00:00:00Z")
    case.now, case.has_served = EXPIRES, True


def revoked(case: Case) -> None:
    case.approvers = [approver for approver in case.approvers if approver.name != "alice"]


def renewed(case: Case) -> None:
    revoked(case)
    case.approvers.append(entry("alice", MALLORY))


LIFETIMES: dict[str, Tamper] = {
    "an expired key": expired,
    "an expired key with an earlier date": lambda case: (
        expired(case),
        setattr(case, "tag", case.approve(at=NOW - timedelta(days=99))),
    ),
    "a version that served, approved after the key expired": dated_later,
    "a version that served, approved at no date": dated_impossibly,
    "a revoked key": revoked,
    "a revoked key of a version that served": lambda case: (revoked(case), setattr(case, "has_served", True)),
    "an earlier key of the approver": renewed,
    "a renamed approver": lambda case: setattr(case, "approvers", [entry("alicia", KEYS["alice"])]),
    "an empty file of approvers": lambda case: setattr(case, "approvers", []),
}

TAMPERINGS = ARTIFACTS | SUBJECTS | EDITS | FORMS | SIGNATURES | LIFETIMES


@pytest.mark.parametrize("tamper", TAMPERINGS.values(), ids=TAMPERINGS)
def test_tampering_is_rejected(case: Case, tamper: Tamper) -> None:
    before = replace(case, approvers=[*case.approvers])
    tamper(case)
    with pytest.raises(ApprovalInvalid) as rejected:
        case.check()
    assert str(rejected.value).isprintable()
    assert len(str(rejected.value)) < 500
    assert case != before or artifact_store.digest(case.folder) != json.loads(before.tag)["digest"]


def test_tamperings_are_many_and_differ() -> None:
    assert len(TAMPERINGS) == sum(map(len, (ARTIFACTS, SUBJECTS, EDITS, FORMS, SIGNATURES, LIFETIMES))) >= 50


# -- valid approvals


def test_message_is_fixed(case: Case) -> None:
    """Fronts and approvers of different releases, with different libraries, must derive the same bytes."""
    approval = signature.parse(case.tag)
    assert approval.message() == (
        b'serving.approval v1\n{"approved_at":"2026-11-28T12:00:00Z","approver":"alice","digest":"'
        + case.subject().digest.encode()
        + b'","key":"'
        + key_of("alice").encode()
        + b'","model":"iris","references":["models:/iris/Production"],"version":"7"}'
    )
    assert case.tag.isascii()
    assert canonical(case.fields) == case.tag


@pytest.mark.parametrize(
    "model", ["iris", "Größe ✓", "Gro\u0308ße", 'quote"back\\slash', "catalog.schema.model"]
)
def test_every_model_name_can_be_approved(case: Case, model: str) -> None:
    case.model, case.version = model, "12"
    case.tag = case.approve()
    case.check()


@pytest.mark.parametrize(
    ("approved", "served"),
    [
        (PRODUCTION, "models:/iris/production"),
        ("models:/iris/production", PRODUCTION),
        ("models:/iris/Latest", "models:/iris/latest"),
        ("models:/iris/007", "models:/iris/7"),
        ("models:/iris@champion", "models:/iris@champion"),
        ("models:/m-" + "0" * 32, "models:/m-" + "0" * 32),
    ],
)
def test_forms_of_one_reference_are_the_same(case: Case, approved: str, served: str) -> None:
    case.tag, case.reference = case.approve("bob", "models:/iris@x", approved), served
    case.check()


def test_version_that_served_needs_no_valid_key(case: Case) -> None:
    case.now, case.has_served = EXPIRES + timedelta(days=999), True
    case.check()


def test_key_without_expiry_stays_valid(case: Case) -> None:
    case.approvers, case.now = [entry("alice", KEYS["alice"], None)], NOW + timedelta(days=9999)
    case.check()


# -- the file of approvers


def test_file_keeps_its_approvers(tmp_path: Path) -> None:
    file = tmp_path / "approvers.json"
    written = tuple(entry(name, key) for name, key in KEYS.items())
    approvers.write(file, written)
    assert approvers.read(file) == written
    assert file.stat().st_mode & 0o777 == 0o600


def raw(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry("alice", KEYS["alice"]).model_dump_json())
    return found | fields


def weak(public: int) -> dict[str, Any]:
    key = public.to_bytes(32, "little")
    return raw(public_key=key.hex(), id=approvers.key_id(key))


P = 2**255 - 19


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("{}", "valid tuple"),
        ('["alice"]', "0: Input should be"),
        (json.dumps([raw(), raw(name="bob")]), "several entries have the key"),
        (json.dumps([raw()]).replace('"name": "alice"', '"name": "alice", "name": "bob"'), "'name' twice"),
        (json.dumps([raw(admin=True)]), "0.admin: Extra inputs"),
        (json.dumps([raw(id="0" * 16)]), "the id does not belong to the public key"),
        (json.dumps([raw(public_key="00")]), "0.public_key"),
        (json.dumps([raw(name="")]), "0.name"),
        (json.dumps([raw(name="аlice")]), "0.name"),
        (json.dumps([raw(name="alice\u200b")]), "0.name"),
        (json.dumps([raw(name="al\nice")]), "0.name"),
        (json.dumps([raw(name="a" * 101)]), "0.name"),
        (json.dumps([raw(expires="2026-11-28T12:00:00")]), "0.expires"),
        ("[" * 100_000, "is not a file of approvers"),
        *((json.dumps([weak(y + sign)]), "weak") for y in (0, 1, P - 1, P, P + 1) for sign in (0, 2**255)),
    ],
)
def test_invalid_file_is_reported(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "approvers.json"
    file.write_text(content)
    with pytest.raises(ApproversFileError) as error:
        approvers.read(file)
    assert message in str(error.value)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ApproversFileError, match="No such file"):
        approvers.read(tmp_path / "none.json")


def test_weak_keys_are_those_whose_signatures_anybody_can_forge() -> None:
    """Verify with the library that such a signature passes, so that the check is needed."""
    identity = (1).to_bytes(32, "little")
    forged = identity + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"any message")
    assert approvers.is_weak(identity)
    assert not any(approvers.is_weak(private_key.public_bytes(key)) for key in KEYS.values())


# -- files of private keys


@pytest.mark.parametrize("passphrase", ["", "correct horse"])
def test_private_key_is_read_back(tmp_path: Path, passphrase: str) -> None:
    file = tmp_path / "alice.key"
    created = private_key.create(file, "alice", passphrase)
    name, key = private_key.read(file, passphrase)
    assert (name, private_key.public_bytes(key)) == ("alice", private_key.public_bytes(created))
    assert file.stat().st_mode & 0o777 == 0o600
    assert (b"ENCRYPTED" in file.read_bytes()) == bool(passphrase)
    with pytest.raises(private_key.PrivateKeyError, match="exists"):
        private_key.create(file, "bob", "")


def test_wrong_passphrase_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "alice.key"
    private_key.create(file, "alice", "correct horse")
    with pytest.raises(private_key.PassphraseRequired):
        private_key.read(file, "")
    with pytest.raises(private_key.PrivateKeyError, match="the passphrase is wrong"):
        private_key.read(file, "battery staple")


@pytest.mark.parametrize(
    "content", ["", "rubbish", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_file_without_a_private_key_is_reported(tmp_path: Path, content: str) -> None:
    file = tmp_path / "alice.key"
    file.write_text(content)
    with pytest.raises(private_key.PrivateKeyError, match="no private key"):
        private_key.read(file, "")


# -- commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "two words", "--key", "new.key"], "'two words' is no name"),
        (["create", "аlice", "--key", "new.key"], "is no name"),
        (["create", "bob", "--key", "alice.key"], "alice.key exists: name a new file for the private key"),
        (["create", "bob", "--key", "new.key", "--expires", "soon"], "soon is neither a time in the future"),
        (["revoke", "nemo"], "there is no approver with the name or key nemo"),
        (["list", "--file", "none.json"], "none.json: No such file"),
    ],
)
def test_mistake_in_a_command_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "approvers.json"
    approvers.write(file, [entry("alice", KEYS["alice"])])
    (tmp_path / "alice.key").touch()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = CliRunner(env={"COLUMNS": "300"}).invoke(
        commands.app, arguments, env={"SERVING_APPROVERS": str(file)}
    )
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_key_is_created_and_revoked(tmp_path: Path) -> None:
    file, runner = tmp_path / "approvers.json", CliRunner()
    for name in ("alice", "alice", "bob"):
        key = tmp_path / f"{len([*tmp_path.iterdir()])}.key"
        created = runner.invoke(commands.app, ["create", name, "--key", str(key), "--file", str(file)])
        assert created.exit_code == 0
        assert private_key.read(key, "")[0] == name
    first, second, third = approvers.read(file)
    assert runner.invoke(commands.app, ["revoke", first.id, "--file", str(file)]).exit_code == 0
    assert approvers.read(file) == (second, third)
    assert runner.invoke(commands.app, ["revoke", "alice", "--file", str(file)]).exit_code == 0
    assert approvers.read(file) == (third,)
