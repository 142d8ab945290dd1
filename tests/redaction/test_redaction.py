"""What may be shown of texts, queries, paths, headers, addresses and objects."""

from __future__ import annotations

import collections
import enum
import json
import re
import sqlite3
import string
import types
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import pydantic
import pytest
from fastapi import FastAPI, Response
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fastapi_observe import install
from fastapi_observe.logs.messages import redact_access
from fastapi_observe.records.exceptions import error_type_of, exception_message, exception_stacktrace
from fastapi_observe.redaction.addresses import truncate_to_network
from fastapi_observe.redaction.names import (
    MAX_CACHED_NAMES,
    SECRET_AFFIXES,
    SECRET_SUFFIXES,
    SECRET_WHOLE_NAMES,
    SecretNames,
)
from fastapi_observe.redaction.patterns import MAX_TEXT_LENGTH, is_card_number
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    MARGIN,
    MAX_CACHED_TEXTS,
    MAX_FIELD_NAME_LENGTH,
    MAX_PATH_LENGTH,
    MAX_QUERY_BYTES,
    MAX_USER_PATTERN_LENGTH,
    Redactor,
)
from fastapi_observe.redaction.values import (
    ELLIPSIS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_LARGE_CONTAINER_MEMBERS,
    MAX_MEMBERS,
)
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.testing import capture

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
CARD = "4111111111111111"

# Names


@pytest.mark.parametrize("name", sorted(SECRET_AFFIXES | SECRET_SUFFIXES | SECRET_WHOLE_NAMES))
def test_names_of_the_list_in_every_spelling(name: str) -> None:
    """Case does not count, nor whether words are divided by `-`, `_`, `.`, a blank or a capital."""
    words = name.split("_")
    camel = words[0] + "".join(word.title() for word in words[1:])
    for spelled in (name, name.upper(), *(name.replace("_", mark) for mark in "-. "), camel, f"{name}2"):
        assert DEFAULT_REDACTOR.is_secret_name(spelled), spelled


@pytest.mark.parametrize(
    "name",
    """user_password userPassword password2 new-password2 smtp.pass card_pin X-Api-Key
    x-goog-iam-authorization-token
    AWSAccessKeyId sessionID token_value reset_token connect.sid user[password] DB_DSN oauth2_token""".split(),  # noqa: SIM905 - a list would be a page long
)
def test_secret_words_at_either_end(name: str) -> None:
    """A name whose first or last words are a secret name is one."""
    assert DEFAULT_REDACTOR.is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    """public_key state nonce status_code country_code token_type token_count password_changed_at pass_rate
    session_seconds
    author authority passenger keyboard compass tokens signal design shipping pinned_at max_tokens span_id code_name
    monkey key""".split(),  # noqa: SIM905 - a list would be a page long
)
def test_ordinary_names(name: str) -> None:
    """A name that only resembles a secret one, or tells something about a secret, is none."""
    assert not DEFAULT_REDACTOR.is_secret_name(name)
    assert not DEFAULT_REDACTOR.is_secret_name("")


def test_names_of_the_user() -> None:
    """A user's names count everywhere, whatever the list says of them."""
    redactor = Redactor(names=["Tenant Name", "state", "token_count", "--"])
    for name in ("tenant_name", "tenantName", "old-tenant-name", "state", "tokenCount"):
        assert redactor.is_secret_name(name)
    assert redactor.text("the tenant name: acme, state=7") == "the tenant name: REDACTED state=REDACTED"
    assert redactor.path("/tenant_name/acme/x") == "/tenant_name/REDACTED/x"
    assert redactor.query(b"state=1") == "state=REDACTED"
    assert redactor.header("X-Tenant-Name", "acme") == "REDACTED"


def test_names_that_are_remembered_are_bounded() -> None:
    """However many names come, few are kept, and long ones never."""
    names = SecretNames()
    for number in range(MAX_CACHED_NAMES + 10):
        assert not names.is_secret(f"name_{number}")
    names.is_secret("x" * 1000)
    assert 0 < len(names._verdicts) <= MAX_CACHED_NAMES
    assert max(map(len, names._verdicts)) < 1000


# Queries


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"q=lamp&page=2", "q=REDACTED&page=2"),
        (b"eyJhbGciOiJzZWNyZXQtdG9rZW4", "REDACTED"),
        (b"page&x", "page&REDACTED"),
        (b"a=&&b=1;c=2", "a=&&b=REDACTED&c=REDACTED"),
        (b"p%61ge=2&filter[page]=3", "p%61ge=2&filter[page]=REDACTED"),
        (b"user[password]=x&Policy=y", "user[password]=REDACTED&Policy=REDACTED"),
        (b"token=x&code=y", "token=REDACTED&code=REDACTED"),
        (f"page={JWT}&page=%65%79J{JWT[3:]}".encode(), "page=REDACTED&page=REDACTED"),
        (f"{JWT}=1&page={CARD}&page".encode(), "REDACTED=REDACTED&page=REDACTED&page"),
        (b"page=password%3Dx&page=a+b", "page=REDACTED&page=a+b"),
    ],
)
def test_values_are_hidden_unless_allowed(query: bytes, shown: str) -> None:
    """A value is shown only if its name is allowed, is not secret, and the value does not look like a secret."""
    assert Redactor(capture_query_parameters=["page", "token", "code", "Policy"]).query(query) == shown
    assert Redactor(capture_query_parameters=["page", "token", "code", "Policy"]).query(query.decode()) == shown


@given(st.binary(max_size=3000))
@example(b"=" * 3000)
def test_keys_are_kept_and_values_are_not(query: bytes) -> None:
    """Whatever bytes come: keys stay in their order, no value is shown, the length is bounded."""
    shown = DEFAULT_REDACTOR.query(query)
    assert len(shown) <= MAX_QUERY_BYTES
    for part, was in zip(shown.split("&"), query.decode("latin-1").replace(";", "&").split("&"), strict=False):
        key, equals, value = part.partition("=")
        assert key in {was.partition("=")[0], "REDACTED", "REDACTED"[: len(key)]} or len(shown) == MAX_QUERY_BYTES
        assert "REDACTED".startswith(value) or not equals


# Free text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to postgres://shop:hunter2@db/shop", "no route to postgres://REDACTED:REDACTED@db/shop"),
        ("401 for url 'https://x.example/a?api_key=hunter2'", "401 for url 'https://x.example/a?api_key=REDACTED'"),
        ("[parameters: ('hunter2', [1])]\n(Background ...)", "[parameters: REDACTED]\n(Background ...)"),
        ("input_value='hunter2', input_type=str]", "input_value=REDACTED, input_type=str]"),
        ("order 7 was not found: ratio 3:4, a@b", "order 7 was not found: ratio 3:4, a@b"),
        (
            "see https://x.example/reset-password/abc/x?page=1#top",
            "see https://x.example/reset-password/REDACTED/x?page=1#REDACTED",
        ),
        ("a ? b", "a ? b"),
        ("to mysql app:hunter2@tcp(db:3306)/shop", "to mysql REDACTED:REDACTED@tcp(db:3306)/shop"),
        ("password = hunter2 and more", "password = REDACTED and more"),
        ('{"user":"ann","password":"hun\\"ter2","x":1}', '{"user":"ann","password":REDACTED,"x":1}'),
        ('{\\"clientSecret\\": \\"hunter2\\", \\"x\\": 1}', '{\\"clientSecret\\": REDACTED, \\"x\\": 1}'),
        ('{"otp":123456,"x":1} {"cvv": 123}', '{"otp":REDACTED,"x":1} {"cvv": REDACTED}'),
        ("{'credentials': ['hunter2', 'x']} and so on", "{'credentials': REDACTED"),
        ("the api key: hunter2; an old key: x", "the api key: REDACTED an old key: x"),
        ("Authorization: Digest username=x, response=y\nHost: z", "Authorization: REDACTED\nHost: z"),
        ("Cookie: a=b; c=d\nHost: z", "Cookie: REDACTED\nHost: z"),
        ("token=Bearer hunter2 x", "token=REDACTED x"),
        ("sent Bearer hunter2hunter2", "sent Bearer REDACTED"),
        ("Bearer authentication failed, token expired soon", "Bearer REDACTED failed, token expired soon"),
        ("Token 0123456789abcdef and Basic YW5uOmh1bnRlcjI=", "Token REDACTED and Basic REDACTED"),
        ("WHERE password = ? AND token=$1, secret = :pw", "WHERE password = ? AND token=$1, secret = :pw"),
        ("password: ", "password: "),
        (
            "status_code=200 code: 5 state: x pin: 3 public_key=abc",
            "status_code=200 code: 5 state: x pin: 3 public_key=abc",
        ),
        (f"got {JWT} twice", "got REDACTED twice"),
        ("AKIAIOSFODNN7EXAMPLE ASIAIOSFODNN7EXAMPLE AIza" + "x" * 35, "REDACTED REDACTED REDACTED"),
        ("ghp_0123456789abcdefXYZ github_pat_0123456789abcdef_", "REDACTED REDACTED"),
        ("glpat-0123456789abcdef pypi-0123456789abcdef npm_0123456789abcdefghij", "REDACTED REDACTED REDACTED"),
        (
            "sk_live_0123456789 rk_test_0123456789 sk-0123456789abcdef xoxb-0123456789",
            "REDACTED REDACTED REDACTED REDACTED",
        ),
        (
            "task-0123456789abcdef desk_live ghosts_and_ghouls Jolly",
            "task-0123456789abcdef desk_live ghosts_and_ghouls Jolly",
        ),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- x", "REDACTED x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc", "REDACTED"),
        ("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----"),
        (f"paid with {CARD} or 4111 1111-1111 1111.", "paid with REDACTED or REDACTED."),
        (f"{CARD} {CARD} {CARD}", "REDACTED REDACTED REDACTED"),
        ("4111111111111112 1720000000000000000 x4111111111111111 0.4111111111111111", None),
        ("Ünïcödé pässword: x, password: ü", "Ünïcödé pässword: x, password: REDACTED"),
        ('value "99999999999" is out of range for type integer', "value REDACTED is out of range for type integer"),
    ],
)
def test_free_text(text: str, shown: str | None) -> None:
    """What looks like a secret, and what stands behind a secret name, is hidden; the rest of a sentence is left."""
    assert Redactor(capture_query_parameters=["page"]).text(text) == (text if shown is None else shown)


def test_what_is_a_card_number() -> None:
    """13 to 19 digits that begin with 2 to 6 and whose sum is right."""
    assert is_card_number("4111111111111111")
    assert is_card_number("378282246310005")
    for wrong in ("4111111111111112", "1111111111111117", "411111111111", "4" * 20):
        assert not is_card_number(wrong)


PIECES = st.sampled_from(
    """password= token: secret " ' \\ :// @ ? & = : / a b1 eyJhbGciOiJI . - _ Bearer \n [SQL: [parameters: ; #
    input_value= , ] 4111111111111111 ghp_0123456789abcdef -----BEGIN PRIVATE KEY----- api key REDACTED ( { x=y
    Cookie: %s""".split(" ")  # noqa: SIM905 - a list would be a page long
)
TEXTS = st.one_of(
    st.text(max_size=300), st.lists(PIECES, max_size=30).map(" ".join), st.lists(PIECES, max_size=30).map("".join)
)


@given(TEXTS)
def test_any_text(text: str) -> None:
    """Nothing raises, the length is bounded, and what was hidden is not hidden again in another way."""
    for redactor in (DEFAULT_REDACTOR, Redactor(names=["x"], capture_query_parameters=["x"])):
        shown = redactor.text(text)
        assert len(shown) <= MAX_TEXT_LENGTH
        assert redactor.text(shown) == shown


WORST = """password= ://a:b@ eyJ eyJabc. Bearer_ token_ 4111-1111_ [SQL:_ ?a= a:a@ sk- ghp_ -----BEGIN_A_A_A_ a.
a_b: input_value= value_" api_key= = password:[ password=\\" \\ basic_a malformed_aaaa ://a@ password='
https://token/ /token/a % ab:cd_ 4""".split()  # noqa: SIM905 - a list would be a page long


@pytest.mark.parametrize("unit", [each.replace("_", " ") for each in WORST])
def test_a_long_text_is_cut_before_it_is_looked_at(unit: str) -> None:
    """64 KiB of the worst text give what its first 8 KiB give: no more was read."""
    for redactor in (DEFAULT_REDACTOR, Redactor(patterns=["hunter2"])):
        long = unit * (65_536 // len(unit))
        assert redactor.text(long) == redactor.text(long[:MAX_TEXT_LENGTH])
        assert redactor.path(long) == redactor.path(long[: MAX_PATH_LENGTH + MARGIN])
        assert redactor.query(long) == redactor.query(long[: MAX_QUERY_BYTES + MARGIN])


def test_no_pattern_reads_anything_twice() -> None:
    """No repeat without a bound gives back what it took, but for one that ends where a fixed text begins."""
    from fastapi_observe.redaction import patterns as redaction_patterns  # noqa: PLC0415 - all of it

    patterns = [each for each in vars(redaction_patterns).values() if isinstance(each, re.Pattern)]
    assert len(patterns) > 5
    for pattern in patterns:
        atomic = re.sub(r"(?<!\\)[*+}]\)[*+]\)", "", pattern.pattern)  # `(?>(?:...)*)`
        assert not re.search(r"(?<!\\)[*+}]\)[*+](?!\+)", atomic), pattern.pattern
        assert pattern.pattern.count("(?>(?:") >= (len(pattern.pattern) - len(atomic)) / 4, pattern.pattern


# What users add


def test_patterns_of_the_user() -> None:
    """What a user's expression finds is hidden; each line of a long text is cut for them."""
    redactor = Redactor(patterns=[r"EMP-\d+", "x*"])
    assert redactor.text("by EMP-1234 for xx") == "by REDACTED for REDACTED"
    long = "\n".join(["a" * 3000, "EMP-1", "b" * 3000 + "EMP-2"])
    assert redactor.text(long) == "\n".join(["a" * MAX_USER_PATTERN_LENGTH, "REDACTED", "b" * MAX_USER_PATTERN_LENGTH])
    assert redactor.path("/EMP-7") == "/REDACTED"


def test_function_of_the_user() -> None:
    """It is given the text last. What it raises, or returns besides text, hides the text and is counted."""
    told: list[tuple[str, str]] = []

    def redact(text: str) -> Any:
        if text == "boom":
            raise LookupError
        return None if text == "none" else text.replace("blue", "B")

    redactor = Redactor(function=redact, internal_errors=lambda site, exc: told.append((site, type(exc).__name__)))
    assert redactor.text("blue password=x") == "B password=REDACTED"
    assert [redactor.text("boom"), redactor.text("none")] == ["REDACTED", "REDACTED"]
    assert told == [("redact", "LookupError"), ("redact", "TypeError")]
    assert Redactor(function=redact).text("boom") == "REDACTED"


def test_made_from_the_settings() -> None:
    """Every option of the section is used."""
    settings = ObserveSettings(
        capture_query_parameters=("page",),
        capture_pii=True,
        redact_names=("tenant",),
        redact_patterns=("EMP",),
        redact=lambda text: text.replace("blue", "B"),
    )
    redactor = Redactor.from_settings(settings)
    assert redactor.query("page=ab&page=blue") == "page=ab&page=REDACTED"  # what the function changes is not shown
    assert redactor.address("203.0.113.7") == "203.0.113.7"
    assert redactor.text("blue") == "B"
    assert redactor.fields({"tenant": "x", "a": "EMP"}) == {"tenant": "REDACTED", "a": "REDACTED"}


# Paths


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/items/7", "/items/7"),
        ("/token/abc", "/token/REDACTED"),
        ("/token/refresh", "/token/refresh"),
        ("/verify-token/abc/", "/verify-token/REDACTED/"),
        ("/reset-password//abc", "/reset-password//REDACTED"),
        ("//token/.//./abc//x", "//token/.//./REDACTED//x"),
        ("/token//refresh", "/token//refresh"),
        ("/tokens/abc/keys/x", "/tokens/abc/keys/x"),
        (f"/x/{JWT}/y", "/x/REDACTED/y"),
        (f"/cards/{CARD}", "/cards/REDACTED"),
        ("/u:p@h/x", "/u:p@h/x"),
        ("", ""),
    ],
)
def test_paths(path: str, shown: str) -> None:
    """What stands after a segment with a secret name is hidden, and what looks like a secret."""
    assert DEFAULT_REDACTOR.path(path) == shown
    assert DEFAULT_REDACTOR.path(path) == shown
    assert DEFAULT_REDACTOR.raw_path(path) == shown


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["token", "keys", "sk", "xoxb", "orders", JWT, CARD, "AKIAIOSFODNN7EXAMPLE", "ghp_0123456789abcdef"]
            ),
            st.from_regex(r"[0-9a-z._~-]{0,40}", fullmatch=True),
            st.from_regex(r"(sk|rk|npm|pypi|glpat|ghp|github_pat|xoxb)[_-][a-z_-]{0,40}", fullmatch=True),
            st.uuids().map(str),
            st.text(max_size=20),
        ),
        max_size=5,
    )
)
def test_a_plain_path_is_plain(segments: list[str]) -> None:
    """What is told at once to have nothing to hide has nothing to hide, and needs no escapes in JSON."""
    path = "".join(f"/{segment}" for segment in segments)
    if DEFAULT_REDACTOR.is_plain_path(path):
        assert DEFAULT_REDACTOR.text(DEFAULT_REDACTOR.hide_secret_segments(path)) == path
        assert json.dumps(path) == f'"{path}"'


KNOWING = Redactor()
"""Has seen the paths of the heads below with an id, so that it looks at the last segment alone."""
HEADS = ("/", "/orders/", "/a/b-c/", "//", "/token/", "/my.keys/", "/SHOP/", "/sk-live/", "")


@given(
    st.sampled_from(HEADS),
    st.one_of(
        st.uuids().map(str),
        st.from_regex(r"[0-9]{0,20}", fullmatch=True),
        st.from_regex(r"[0-9a-f-]{0,40}", fullmatch=True),
        st.sampled_from([CARD, "4111-1111-1111-1111", "key", "12\n", "٣", "²"]),
    ),
)
def test_a_path_with_an_id_is_judged_as_if_it_were_the_first(head: str, last: str) -> None:
    """That others have come before it with another id changes nothing."""
    for each in HEADS:
        KNOWING.is_plain_path(f"{each}7")
    assert {"/", "/orders/"} <= KNOWING._plain_heads
    assert not {"/token/", "/my.keys/"} & KNOWING._plain_heads
    assert KNOWING.is_plain_path(head + last) is Redactor().is_plain_path(head + last)
    assert KNOWING.path(head + last) == Redactor().path(head + last)


def test_usual_paths_are_told_at_once() -> None:
    """Words, numbers, UUIDs and hexadecimal ids in a path cost no more than one look."""
    for path in ("/", "/items/7", f"/v1/orders/{UUID(int=7)}/lines/12", f"/x/{'a1' * 12}", "/payment-methods/7", ""):
        assert DEFAULT_REDACTOR.is_plain_path(path)
        assert DEFAULT_REDACTOR.path(path) == path
    for path in ("/token/abc", "/Items", f"/{CARD}", "/sk-abcdefghijklmnop", "/a b"):
        assert not DEFAULT_REDACTOR.is_plain_path(path)
    assert not Redactor(patterns=["7"]).is_plain_path("/items/7")


def test_encoded_paths() -> None:
    """A percent-encoded path is looked at decoded too; it is shown as it was unless something is hidden."""
    assert DEFAULT_REDACTOR.raw_path("/a%20b/c") == "/a%20b/c"
    assert DEFAULT_REDACTOR.raw_path("/%74oken/abc") == "/token/REDACTED"


@pytest.mark.parametrize(
    ("path", "endpoint", "shown"),
    [
        ("/reset/abc", "/reset/{token}", "/reset/REDACTED"),
        ("/shop/reset/abc", "/reset/{token}", "/shop/reset/REDACTED"),
        ("/reset/a/b/c", "/reset/{token:path}", "/reset/REDACTED"),
        ("/u/7/reset/abc/x", "/u/{user_id}/reset/{resetToken}/x", "/u/7/reset/REDACTED/x"),
        ("/other/abc", "/reset/{token}", "/REDACTED"),
        ("/reset", "/reset/{token}", "/REDACTED"),
        ("/status/404", "/status/{code}", "/status/404"),
        ("/items/7", "/items/{item_id}", "/items/7"),
    ],
)
def test_path_parameters_with_secret_names(path: str, endpoint: str, shown: str) -> None:
    """The value of a parameter with a secret name is hidden, wherever a server puts prefixes."""
    assert DEFAULT_REDACTOR.route_path(path, endpoint) == shown
    assert DEFAULT_REDACTOR.has_secret_parameter(endpoint) == (shown != path)


def test_what_is_remembered_of_clients_is_bounded() -> None:
    """Paths, user agents, addresses, hosts and routes are kept if they are short, and few of them."""
    redactor = Redactor()
    for number in range(MAX_CACHED_TEXTS + 10):
        redactor.path(f"/É{number}")
        redactor.path(f"/{number}")
        redactor.user_agent(b"%d" % number)
        redactor.address(f"10.0.{number // 256}.{number % 256}")
        redactor.host(b"h%d" % number)
        redactor.path(f"/h{number}/1")
        redactor.route_path("/x", f"/{number}")
    Redactor().path("/x" * 2500)
    for long in ("/" + "x" * 5000, "y" * 5000, "/x" * 2500):
        redactor.path(long)
        redactor.user_agent(long.encode())
        redactor.address(long)
        redactor.host(long.encode())
    kept = (redactor._paths, redactor._plain_paths, redactor._user_agents, redactor._addresses, redactor._hosts)
    for each in (*kept, redactor._plain_heads, redactor._routes):
        assert 0 < len(each) <= MAX_CACHED_TEXTS
        assert all(len(key) < 5000 for key in each)


# Addresses, hosts and headers


@pytest.mark.parametrize(
    ("address", "shown"),
    [
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
    ],
)
def test_addresses(address: Any, shown: str | None) -> None:
    """Of a client's address its network is shown; what is no address is not shown at all."""
    assert DEFAULT_REDACTOR.address(address) == shown
    assert DEFAULT_REDACTOR.address(address) == shown
    if isinstance(address, str):
        assert Redactor(capture_pii=True).address(address) == address


def test_hosts() -> None:
    """A host is believed if it is plain and does not look like a secret."""
    assert DEFAULT_REDACTOR.host(b"shop.example:8443") == ("shop.example", 8443)
    assert DEFAULT_REDACTOR.host(b"[::1]") == ("::1", None)
    for wrong in (b"u:p@h", b"", b"h:99999", b"ghp_0123456789abcdefXYZ", JWT.encode()):
        assert DEFAULT_REDACTOR.host(wrong) is None
        assert DEFAULT_REDACTOR.host(wrong) is None


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
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
    ],
)
def test_headers(name: str, value: str, shown: str) -> None:
    """Secret headers are never shown, forwarding ones show networks, the others pass as text."""
    assert DEFAULT_REDACTOR.header(name, value) == shown
    whole = Redactor(capture_pii=True).header(name, value)
    assert whole == (value if "f" in name.lower()[:3] or "real" in name else shown) or name == "referer"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
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
    ],
)
def test_access_lines(line: str, shown: str) -> None:
    """A server's access line shows the network of its client, and path and query as spans do."""
    assert redact_access(line, Redactor(capture_query_parameters=["page"])) == shown


# Objects


class Colour(enum.Enum):
    """Plain and secret."""

    RED = "red"
    SECRET = JWT


@dataclass
class Account:
    """Something of the user's."""

    name: str
    password: str
    _hidden: str = "x"


class Odd:
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


Point = collections.namedtuple("Point", "x password")  # noqa: PYI024 - the untyped one


def test_objects_with_nothing_to_hide_stay_what_they_are() -> None:
    """The very object is handed on: nothing is copied, nothing turned into text."""
    for value in (1, 1.5, None, True, "x", b"x", [1, ["a"]], (1, 2), {"a": {"b": 1}}, {1, 2}, Colour.RED, UUID(int=1)):
        assert DEFAULT_REDACTOR.value(value) is value
    for odd in (object(), 10**15, 10**30, collections.deque([1]), collections.ChainMap({"a": 1}), KeyError("x")):
        assert DEFAULT_REDACTOR.value(odd) is odd
    fields = {"order_id": 7, "note": "x", "password": None, "token": True, "secret": ""}
    assert DEFAULT_REDACTOR.fields(fields) is fields


def test_objects_with_something_to_hide() -> None:
    """Names count at any depth, in mappings and data classes; texts count wherever they are."""
    value = {
        "user": {"clientSecret": ["x"], "pin": 1234, "names": ["ann"]},
        "texts": (JWT, [f"password={JWT}"], {JWT}, collections.deque([JWT])),
        "card": int(CARD),
        "bytes": JWT.encode(),
        "enum": Colour.SECRET,
        "account": Account("ann", "hunter2"),
        "point": Point(1, "hunter2"),
        JWT: 1,
        7: {"token": 1.5},
        "error": ValueError("password=x"),
        "db": sqlite3.OperationalError('near "hunter2": syntax error'),
        "map": collections.ChainMap({"token": "x"}),
    }
    before = repr(value)
    assert DEFAULT_REDACTOR.value(value) == {
        "user": {"clientSecret": "REDACTED", "pin": "REDACTED", "names": ["ann"]},
        "texts": ["REDACTED", ["password=REDACTED"], ["REDACTED"], ["REDACTED"]],
        "card": "REDACTED",
        "bytes": "REDACTED",
        "enum": "REDACTED",
        "account": {"name": "ann", "password": "REDACTED"},
        "point": {"x": 1, "password": "REDACTED"},
        "REDACTED": 1,
        7: {"token": "REDACTED"},
        "error": "password=REDACTED",
        "db": 'near "REDACTED": syntax error',
        "map": {"token": "REDACTED"},
    }
    assert repr(value) == before


def test_objects_that_are_no_tree() -> None:
    """Cycles, depths and crowds end; an object that raises is not shown."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert DEFAULT_REDACTOR.value(cycle) == [1, "<cycle>"]
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    assert "<too deep>" in str(DEFAULT_REDACTOR.value(deep))
    assert len(DEFAULT_REDACTOR.value(list(range(MAX_MEMBERS + 5)))) == MAX_LARGE_CONTAINER_MEMBERS
    assert DEFAULT_REDACTOR.value(Odd()) == "<unprintable Odd>"


class Pair(NamedTuple):
    """A tuple with a text of its own."""

    first: Any
    second: Any


def test_what_is_too_much_for_a_line() -> None:
    """Parts that are shared count wherever they stand; all values of a line share members and characters."""
    shared: Any = "x" * 100
    for _ in range(5):
        shared = [shared] * 20
    shown = DEFAULT_REDACTOR.fields({"a": shared, "b": shared, "c": [1], "d": {"e": 1}, "f": [], "g": 7, "h": "text"})
    assert len(repr(shown)) < 200_000
    assert repr(shown).count("'<too large>'") > 3
    assert [shown[name] for name in "cdfgh"] == ["<too large>", "<too large>", [], 7, "text"]
    assert len(DEFAULT_REDACTOR.value(list(range(MAX_MEMBERS)))) == MAX_MEMBERS
    big = "y" * 1_000_000
    texts = DEFAULT_REDACTOR.value([big] * 50)
    assert texts[-1] == ELLIPSIS
    assert sum(map(len, texts)) < 2 * MAX_CHARACTERS
    assert DEFAULT_REDACTOR.fields({f"n{number}": big for number in range(20)})["n19"] == ELLIPSIS
    many = DEFAULT_REDACTOR.fields({f"n{number}": number for number in range(MAX_MEMBERS + 1)})
    assert len(many) == MAX_LARGE_CONTAINER_MEMBERS
    assert DEFAULT_REDACTOR.fields({"n" * 1000: 1, "m": 2}) == {"n" * MAX_FIELD_NAME_LENGTH: 1, "m": 2}
    assert len(DEFAULT_REDACTOR.value(b"z" * 1_000_000)) == MAX_TEXT_LENGTH
    assert DEFAULT_REDACTOR.value(Pair(shared, {1: b"x"})) == "<too large Pair>"
    assert DEFAULT_REDACTOR.value(ValueError(shared, 1)) == "<too large ValueError>"
    small = Pair(1, {1: b"x"})
    assert DEFAULT_REDACTOR.value(small) is small


def test_what_a_data_class_has_beside_its_fields() -> None:
    """Only its fields are shown: nobody declared the rest."""

    @dataclass
    class Point:
        x: int

    point: Any = Point(1)
    assert DEFAULT_REDACTOR.value(point) is point
    point.password = "hunter" + "2"
    assert DEFAULT_REDACTOR.value(point) == {"x": 1}


def test_personal_data() -> None:
    """Fields that name a person are hidden, addresses shortened, unless personal data is captured."""
    fields: dict[str, Any] = {
        "user.email": "ann@example.com",
        "enduser.id": "ann",
        "client.address": "203.0.113.7",
        "x_forwarded_for": "203.0.113.7",
        "x-real-ip": 7,
    }
    assert DEFAULT_REDACTOR.fields(fields) == {
        "user.email": "REDACTED",
        "enduser.id": "REDACTED",
        "client.address": "203.0.113.0/24",
        "x_forwarded_for": "203.0.113.0/24",
        "x-real-ip": 7,
    }
    assert Redactor(capture_pii=True).fields(fields) is fields


@given(
    st.recursive(
        st.one_of(st.text(max_size=20), st.integers(), st.none(), st.binary(max_size=9)),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(string.ascii_letters), inner)),
        max_leaves=20,
    )
)
def test_any_object(value: Any) -> None:
    """Nothing raises, and what may be shown may be shown again."""
    shown = DEFAULT_REDACTOR.value(value)
    assert DEFAULT_REDACTOR.value(shown) == shown


# In an app


def test_whole_addresses_if_wanted(observed: Any) -> None:
    """`capture_pii` shows addresses whole, on spans and lines; else their networks are shown."""
    for wanted, shown in ((True, "203.0.113.9"), (False, "203.0.113.0/24")):
        app = FastAPI()
        seen = observed(app, capture_pii=wanted)
        TestClient(app, client=("203.0.113.9", 7)).get("/reset/abc")
        assert seen.server_spans[0].attributes["client.address"] == shown
        assert seen.request_lines[-1]["fields"]["remote_addr"] == shown


def test_a_secret_parameter_is_hidden_on_span_and_line(observed: Any) -> None:
    """`/reset/{token}` shows neither its token on the span nor in the line's URL; other routes show their paths."""
    app = FastAPI()

    @app.get("/reset/{token}")
    def reset(token: str) -> str:
        return "ok"

    @app.get("/items/{item}")
    def item(item: str) -> str:
        return "ok"

    seen = observed(app)
    client = TestClient(app)
    for path in ("/reset/abc", "/reset/abd?x=1", "/items/abc", '/items/a"b'):
        client.get(path)
    assert [span.attributes["url.path"] for span in seen.server_spans] == [
        "/reset/REDACTED",
        "/reset/REDACTED",
        "/items/abc",
        '/items/a"b',
    ]
    assert [line["fields"]["url"] for line in seen.request_lines] == [
        "/reset/REDACTED",
        "/reset/REDACTED?x=REDACTED",
        "/items/abc",
        '/items/a"b',
    ]


# What a hostile reader found


@pytest.mark.parametrize(
    "text",
    [
        "password == {}",
        "password := {}",
        "mysqldump --password {} db",
        "Command '['mysql', '--password', '{}']' failed",
        "<password>{}</password>",
        "<wsse:Password Type='x'>{}</wsse:Password>",
        '<input name="password" value="{}">',
        '{{"name": "password", "value": "{}"}}',
        "[(b'cookie', b'x={}'), (b'x-api-key', b'{}')]",
        'Bearer "{}"',
        "Bearer: {}",
        "Bearer%20{}",
        "password%3D{}",
        '{{"pin": "{}"}}',
        "{{'session': '{}'}}",
        "AccountName=a;AccountKey={};End",
        "hf_{}abcdefghijklmnopqrstuvwx",
        "SG.{}abcdefghijklmnop.abcdefghijklmnopqrstuvwxyz",
        "ya29.{}aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "whsec_{}aaaaaaaaaaaaaaaaaaaaaaaaa",
        "shpat_{}aaaaaaaaaaaaaaaaaaaaaaa",
        "xapp-1-{}aaaaaaaaaaaaaa",
        "hvs.{}aaaaaaaaaaaaaaaaaaaaa",
        "dop_v1_{}aaaaaaaaaaaaaaa",
        "https://hooks.slack.com/services/T00000000/B00000000/{}abcdefghijklmnop",
        "https://api.telegram.org/bot123456789:AAF{}abcdefghijklmnopqrstuvwx/send",
        "db failed: (1062, \"Duplicate entry '{}' for key 'u'\")",
        "db failed: Key (email)=({}) already exists.",
        "db failed: no such table: {}",
        "db failed: table u has no column named {}",
        "db failed: no such index: {}",
        "db failed: no such savepoint: {}",
        "db failed: unable to open database: /{}",
        'db failed: near "{}": syntax error',
        "1 validation error:\n  {{'type': 'x', 'loc': ('body',), 'msg': 'm', 'input': {{'a': 'b\n{}'}}, 'url': 'u'}}\n",
        "[{{'type': 'x', 'loc': ('body',), 'msg': 'm', 'ctx': {{'error': ValueError('{}')}}}}]",
        '[{{"type":"x","loc":["body"],"msg":"m","input":"{}"}}]',
        "[type=x, input_value={{'a': 'b, input_type=', 'c': '{}'}}, input_type=dict]",
    ],
)
def test_what_a_text_may_hold_a_secret_in(text: str) -> None:
    """Options, pairs, elements, driver's errors in others' texts, refused input, and tokens that tell what they are."""
    assert "hunter2Zq" not in DEFAULT_REDACTOR.text(text.format(*["hunter2Zq"] * 2))
    assert "hunter2Zq" not in DEFAULT_REDACTOR.text("x, " + text.format(*["hunter2Zq"] * 2))


def test_other_keys_of_ordinary_names() -> None:
    """Options, pairs, elements and quoted names that are not secret stay, beside a word that is."""
    text = "passwords: 1 --port 80 ('a', 'b') <b>c</b> name='a' value=b 'x': 1 \"pins=2"
    assert DEFAULT_REDACTOR.text(text) == text.replace("passwords: 1", "passwords: REDACTED")


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    user: str = "ann"
    pin: str = "hunter2Zq"
    quiet: str = pydantic.Field("unseen", repr=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([(b"cookie", b"x"), (b"a", b"b")], [[b"cookie", "REDACTED"], (b"a", b"b")]),
        (("password", ["x"]), ["password", "REDACTED"]),
        ((1, 2), (1, 2)),
        ({"password": "x"}.items(), [["password", "REDACTED"]]),
        ({"name": "password", "value": "x"}, {"name": "password", "value": "REDACTED"}),
        ({"key": "Authorization", "value": "x"}, {"key": "Authorization", "value": "REDACTED"}),
        ({"name": "lamp", "value": "x"}, {"name": "lamp", "value": "x"}),
        (
            {"loc": ("a",), "msg": "m", "input": 1, "ctx": {"a": 1}},
            {"loc": ("a",), "msg": "m"} | dict.fromkeys(("input", "ctx"), "REDACTED"),
        ),
        (_Model(session="x"), {"user": "ann", "pin": "REDACTED", "session": "REDACTED"}),
        (types.SimpleNamespace(pin="x", a=1), {"pin": "REDACTED", "a": 1}),
    ],
)
def test_names_beside_their_values(value: Any, shown: Any) -> None:
    """Pairs, `name` and `value`, errors of validation, models and namespaces are judged by all names of the list."""
    assert DEFAULT_REDACTOR.value(value) == shown


def test_objects_with_nothing_to_hide_stay() -> None:
    """A model, a named tuple, a namespace and a class of one stay what they are; their own text is judged too."""
    for value in (types.SimpleNamespace(a=1), Point(1, None), _Model):
        assert DEFAULT_REDACTOR.value(value) is value


def test_errors_that_a_driver_led_to() -> None:
    """The text of an exception that was raised from a driver's is shown without what it quotes."""
    exc = RuntimeError('db failed: syntax error at or near "hunter2Zq"')
    exc.__cause__ = sqlite3.OperationalError("x")
    assert exception_message(exc) == 'db failed: syntax error at or near "REDACTED"'
    assert "hunter2Zq" not in exception_stacktrace(exc)


def test_addresses_are_bounded() -> None:
    """What a proxy passes on as an address may be long: 64 characters are looked at, and none of it is remembered."""
    for redactor in (Redactor(), Redactor(capture_pii=True)):
        for address in ("x" * 1_000_000, "::1%" + "x" * 1_000_000):
            assert len(redactor.address(address) or "") <= 64
        assert redactor._addresses == {}
        assert len(redactor.header("x-forwarded-for", "x" * 1_000_000)) <= MAX_TEXT_LENGTH
    assert truncate_to_network("::1%" + "x" * 100) == "REDACTED"
    assert DEFAULT_REDACTOR.address(("a", 1)) == "REDACTED"


def test_long_paths_cost_what_short_ones_do() -> None:
    """Of a path 1,152 characters are judged, however long it is."""
    redactor = Redactor()
    assert redactor.is_plain_path("/a" * 576 + "/Password=1")
    assert redactor.path("/a" * 30_000) == "/a" * 576


ROUTES = ["/reset/{token}", "/reset/done", "/{tenant}/x/{secret}", "/f/{access_key}/y", "/p/{token:path}", "/a/{path}"]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/reset/abc", "/reset/REDACTED"),
        ("/reset/abc/", "/reset/REDACTED/"),
        ("/reset/abc/def", "/reset/REDACTED/REDACTED"),
        ("/api/reset/abc", "/api/reset/REDACTED"),
        ("/reset", "/reset"),
        ("/acme/x/abc", "/acme/x/REDACTED"),
        ("/f/abc/z", "/f/REDACTED/z"),
        ("/f/abc/y/z", "/f/REDACTED/y/z"),
        ("/p/a/b", "/p/REDACTED/REDACTED"),
        ("/other/abc", "/other/abc"),
        ("/a" * 100, "/a" * 63 + "/REDACTED"),
        ("/reset//abc", "/reset//REDACTED"),
        ("/f//abc/z", "/f//REDACTED/z"),
        ("/f/./abc/z", "/f/REDACTED/REDACTED/z"),
        ("//f/.//abc//z", "//f/REDACTED//REDACTED//z"),
        ("/other//abc/.", "/other//abc/."),
    ],
)
def test_paths_that_no_route_answered(path: str, shown: str) -> None:
    """What stands where a template has a secret parameter is hidden, though no route answered."""
    redactor = Redactor(templates=lambda: ROUTES)
    for endpoint in ("unmatched", "redirect", "/a/{path}"):
        assert redactor.has_secret_parameter(endpoint)
        assert redactor.route_path(path, endpoint) == shown
    assert redactor.raw_path(path, redactor.unmatched_path) == shown
    assert redactor.route_path("/reset/done", "/reset/done") == "/reset/done"
    assert not Redactor().has_secret_parameter("unmatched")
    assert Redactor().unmatched_path(path) == path[:MAX_PATH_LENGTH]


def test_secret_parameters_where_the_router_did_not_answer() -> None:
    """A redirect, a 404 below, a middleware's own answer: neither the span nor the line shows the parameter."""
    app = FastAPI()

    @app.get("/reset/{token}")
    def reset(token: str) -> str:
        return token[:0]

    @app.get("/reset/all")
    def every() -> None: ...

    @app.middleware("http")
    async def refuse(request: Any, call_next: Any) -> Any:
        return Response(status_code=401) if "no" in request.query_params else await call_next(request)

    install(app)
    with capture(app) as seen, TestClient(app, follow_redirects=False) as client:
        for path in ("/reset/hunter2Zq/", "/reset/hunter2Zq/y", "/reset/hunter2Zq?no=1", "/reset/hunter2Zq"):
            client.get(path)
    seen.assert_no_leak("hunter2Zq")


def test_names_of_operations_are_redacted_once() -> None:
    """A name that looks like a secret is hidden in label and span name alike; long ones are not remembered."""
    app = FastAPI()
    observe = install(app)
    with capture(app) as seen, observe.operation(f"job {JWT}"), observe.external.call(f"s {JWT}", f"o {JWT}"):
        pass
    observe.close()
    seen.assert_no_leak(JWT)
    redactor = Redactor()
    for number in range(MAX_CACHED_TEXTS + 2):
        redactor.name(f"name {number}")
    assert redactor.name("x" * 1000) == "x" * 1000
    assert len(redactor._labels) == 2
    assert error_type_of(type(JWT.replace(".", "_"), (Exception,), {})()) != JWT
