"""Messages of registries and their libraries: addresses are masked, and the cause stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.registry.address_masking import public

HIDDEN = ("mlflow.internal.corp", "10.1.2.3", "'db'", '"db"', "secret", "alice", "5000", "2001:db8", "::1")
HTTP = "HTTPConnectionPool(host='mlflow.internal.corp', port=5000): "
POSTGRES = "(psycopg2.OperationalError) connection to server at "


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (
            f"{HTTP}Failed to resolve 'mlflow.internal.corp' ([Errno -2] Name or service not known)",
            "Failed to resolve '…' ([Errno -2] Name or service not known)",
        ),
        (f"{HTTP}Read timed out. (read timeout=3.0)", "Read timed out. (read timeout=3.0)"),
        ("Connection to secret timed out. (connect timeout=3.0)", "timed out. (connect timeout=3.0)"),
        ("Failed to resolve 'db'", "Failed to resolve"),
        ("cannot connect to alice:5000: refused", "refused"),
        (
            f'{POSTGRES}"10.1.2.3", port 5000 failed: password authentication failed for user "alice"',
            "password authentication failed for user",
        ),
        (f'{POSTGRES}"secret" (2001:db8::7), port 5000 failed: timeout', "failed: timeout"),
        (f'{POSTGRES}"secret" (::1), port 5000 failed: Connection refused', "Connection refused"),
        ('could not translate host name "db" to address: Name or service not known', "not known"),
        ('no pg_hba.conf entry for host "10.1.2.3", user "alice"', "no pg_hba.conf entry"),
        ("(2003, \"Can't connect to MySQL server on 'db' (timed out)\")", "timed out"),
        (
            "(1045, \"Access denied for user 'alice'@'10.1.2.3' (using password: YES)\")",
            "Access denied for user '…'@'…' (using password: YES)",
        ),
        ("[Errno 13] Permission denied: '/mnt/secret/mlruns/1'", "Permission denied: '…'"),
        ("[Errno 13] Permission denied: '/mnt/my secret/x'", "Permission denied: '…'"),
        ("invalid path: /etc/secret.pem", "invalid path: …"),
        ('Could not connect to the endpoint URL: "http://secret:5000/x"', "connect to the endpoint URL"),
        (
            "User: arn:aws:iam::1:user/alice is not authorized to perform: s3:ListBucket on resource: "
            '"arn:aws:s3:::secret"',
            "is not authorized to perform: s3:ListBucket",
        ),
        (
            "403 alice@secret.iam.gserviceaccount.com does not have access to the object",
            "does not have access to the object",
        ),
        (
            "certificate verify failed: Hostname mismatch, certificate is not valid for 'secret'.",
            "certificate verify failed: Hostname mismatch",
        ),
        ("Unable to reach mlflow.internal.corp/secret", "Unable to reach …"),
        ("invalid dsn: host=secret port=5000 user=alice", "invalid dsn: host=… port=… user=…"),
        ("<title>secret.internal.corp: Sign in</title><p>10.1.2.3", "a page with the title '…: Sign in'"),
    ],
)
def test_address_is_masked_and_cause_stays(message: str, cause: str) -> None:
    masked = public(message)
    assert cause in masked
    assert not [name for name in HIDDEN if name in masked]


@pytest.mark.parametrize(
    "message",
    [
        "INTERNAL_ERROR: disk full",
        "No module named 'boto3'",
        "Registered Model with name=iris not found",
        "Set 'MLFLOW_ALLOW_FILE_STORE' to true",
        "SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number')",
        "An error occurred (403) when calling the HeadObject operation: Forbidden",
        "An error occurred (NoSuchBucket) when calling the ListObjectsV2 operation",
        "API request to endpoint /api/2.0/mlflow/runs/get failed with error code 403 != 200",
        "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
        "MLflow requires SQLite >= 3.31.0 at 12:30:45, and/or 1.5",
        "'NoneType' object has no attribute 'get'",
    ],
)
def test_message_without_an_address_is_unchanged(message: str) -> None:
    assert public(message) == message


LABEL = st.from_regex(r"[a-z][a-z0-9]{6,12}", fullmatch=True)
PHRASES = [
    "no route to {}",
    "resolve '{}'",
    'for "{}"',
    "host={}",
    "https://{}/x",
    "at {}, failed",
    "({})",
    "x@{}",
]


@given(st.lists(LABEL, min_size=2, max_size=4), st.sampled_from(PHRASES))
def test_dotted_name_is_masked_in_every_phrase(labels: list[str], phrase: str) -> None:
    masked = public(f"it failed: {phrase.format('.'.join(labels))}")
    assert not [label for label in labels if label in masked]


@given(st.ip_addresses(), st.sampled_from(PHRASES))
def test_ip_address_is_masked_in_every_phrase(address: object, phrase: str) -> None:
    assert str(address) not in public(f"it failed: {phrase.format(address)}")
