"""Client addresses, hosts, headers and access logs."""

from __future__ import annotations

from typing import Any

from driver import with_client
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_observe.logs.messages import redact_access
from fastapi_observe.redaction.addresses import truncate_to_network
from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    Redactor,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
CARD = "4111111111111111"


ADDRESSES = [
    ("203.0.113.77", "203.0.113.0/24"),
    ("203.0.113.77:4711", "203.0.113.0/24"),
    ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
    ("[2001:db8:1:2::4]:80", "2001:db8:1::/48"),
    ("::ffff:203.0.113.77", "203.0.113.0/24"),
    ("fe80::1%eth0", "fe80::/48"),
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1:5", "127.0.0.1:5"),
    ("::1", "::1"),
    ("testclient", "testclient"),
    ("", ""),
    ("hunter2", "REDACTED"),
    (None, None),
    (7, "REDACTED"),
]


def test_addresses() -> None:
    """Client addresses are reported as networks; anything that is not an address is redacted."""
    for address, shown in ADDRESSES:
        assert DEFAULT_REDACTOR.address(address) == shown
        assert DEFAULT_REDACTOR.address(address) == shown
        if isinstance(address, str):
            assert Redactor(capture_pii=True).address(address) == address


def test_hosts() -> None:
    """A `Host` header is used if it is plain and does not look like a secret."""
    assert DEFAULT_REDACTOR.host(b"shop.example:8443") == ("shop.example", 8443)
    assert DEFAULT_REDACTOR.host(b"[::1]") == ("::1", None)
    for wrong in (b"u:p@h", b"", b"h:99999", b"ghp_0123456789abcdefXYZ", JWT.encode()):
        assert DEFAULT_REDACTOR.host(wrong) is None
        assert DEFAULT_REDACTOR.host(wrong) is None


HEADERS = [
    ("X-Forwarded-For", "203.0.113.7, 10.1.2.3", "203.0.113.0/24, 10.1.2.0/24"),
    ("x_real_ip", "203.0.113.7", "203.0.113.0/24"),
    (
        "forwarded",
        'for="[2001:db8::1]:80";by=203.0.113.43;host=x, for=unknown',
        "for=2001:db8::/48;by=203.0.113.0/24, for=REDACTED",
    ),
    ("Authorization", "x", "REDACTED"),
    ("x-hub-signature-256", "x", "REDACTED"),
    ("X-Amz-Security-Token", "x", "REDACTED"),
    ("referer", "https://a:b@x.example/?q=1", "https://REDACTED:REDACTED@x.example/?q=REDACTED"),
    ("X_User_AuthData", "x", "REDACTED"),
    ("x-tenant", "acme", "acme"),
]


def test_headers() -> None:
    """Secret headers are redacted, forwarding headers show networks, others are redacted as text."""
    for name, value, shown in HEADERS:
        assert DEFAULT_REDACTOR.header(name, value) == shown
        whole = Redactor(capture_pii=True).header(name, value)
        assert whole == (value if "f" in name.lower()[:3] or "real" in name else shown) or name == "referer"


ACCESS_LINES = [
    (
        '203.0.113.9:5 - "WebSocket /ws?token=x&page=1" [accepted]',
        '203.0.113.0/24 - "WebSocket /ws?token=REDACTED&page=1" [accepted]',
    ),
    ('203.0.113.9:5 - "GET /token/abc HTTP/1.1" 200', '203.0.113.0/24 - "GET /token/REDACTED HTTP/1.1" 200'),
    (
        '2001:db8:1:2::3 - - [1/Jan] "GET /%74oken/abc?x HTTP/1.1"',
        '2001:db8:1::/48 - - [1/Jan] "GET /token/REDACTED?REDACTED HTTP/1.1"',
    ),
    ("", ""),
]


def test_access_lines() -> None:
    """A server's access log shows the client's network, and path and query redacted as on spans."""
    for line, shown in ACCESS_LINES:
        assert redact_access(line, Redactor(capture_query_parameters=["page"])) == shown


def test_addresses_are_bounded() -> None:
    """A proxy may forward anything as an address: 64 characters are reported, and long values are not remembered."""
    for redactor in (Redactor(), Redactor(capture_pii=True)):
        for address in ("x" * 1_000_000, "::1%" + "x" * 1_000_000):
            assert len(redactor.address(address) or "") <= 64
        assert len(redactor.header("x-forwarded-for", "x" * 1_000_000)) <= MAX_SCANNED_LENGTH
    assert truncate_to_network("::1%" + "x" * 100) == "REDACTED"
    assert DEFAULT_REDACTOR.address(("a", 1)) == "REDACTED"


def test_capture_pii_shows_whole_addresses(observed: Any) -> None:
    """With `capture_pii` spans and lines show whole addresses, without it their networks."""
    for wanted, shown in ((True, "203.0.113.9"), (False, "203.0.113.0/24")):
        app = FastAPI()
        seen = observed(app, capture_pii=wanted)
        TestClient(with_client(app, "203.0.113.9", 7)).get("/reset/abc")
        assert seen.server_spans[0].attributes["client.address"] == shown
        assert seen.request_lines[-1]["fields"]["remote_addr"] == shown
