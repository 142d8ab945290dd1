"""Paths: secret segments, secret parameters of routes, and paths without a matched route."""

from __future__ import annotations

import gc
import json
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fastapi_observe import install
from fastapi_observe.redaction.redactor import (
    DEFAULT_REDACTOR,
    MAX_CACHED_TEXTS,
    MAX_PATH_LENGTH,
    Redactor,
)
from fastapi_observe.testing import capture

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
CARD = "4111111111111111"


PATHS = [
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
]


def test_paths() -> None:
    """The segment after one with a secret name is redacted, and what looks like a secret."""
    for path, shown in PATHS:
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
    """A path that needs no scan has no secret, and no character that JSON escapes."""
    path = "".join(f"/{segment}" for segment in segments)
    if DEFAULT_REDACTOR.is_plain_path(path):
        assert DEFAULT_REDACTOR.text(DEFAULT_REDACTOR.hide_secret_segments(path)) == path
        assert json.dumps(path) == f'"{path}"'


WARMED_UP = Redactor()
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
def test_remembered_path_heads_do_not_change_the_result(head: str, last: str) -> None:
    """A path with an id gives the same result whether or not its head is remembered."""
    for each in HEADS:
        WARMED_UP.is_plain_path(f"{each}7")
    assert WARMED_UP.is_plain_path(head + last) is Redactor().is_plain_path(head + last)
    assert WARMED_UP.path(head + last) == Redactor().path(head + last)


def test_usual_paths_need_no_scan() -> None:
    """Paths of words, numbers, UUIDs and hexadecimal ids are recognized without a scan."""
    for path in ("/", "/items/7", f"/v1/orders/{UUID(int=7)}/lines/12", f"/x/{'a1' * 12}", "/payment-methods/7", ""):
        assert DEFAULT_REDACTOR.is_plain_path(path)
        assert DEFAULT_REDACTOR.path(path) == path
    for path in ("/token/abc", "/Items", f"/{CARD}", "/sk-abcdefghijklmnop", "/a b"):
        assert not DEFAULT_REDACTOR.is_plain_path(path)
    assert not Redactor(patterns=["7"]).is_plain_path("/items/7")


def test_percent_encoded_paths() -> None:
    """A percent-encoded path is scanned decoded too; it stays encoded unless it has a secret."""
    assert DEFAULT_REDACTOR.raw_path("/a%20b/c") == "/a%20b/c"
    assert DEFAULT_REDACTOR.raw_path("/%74oken/abc") == "/token/REDACTED"


SECRET_PARAMETERS = [
    ("/reset/abc", "/reset/{token}", "/reset/REDACTED"),
    ("/shop/reset/abc", "/reset/{token}", "/shop/reset/REDACTED"),
    ("/reset/a/b/c", "/reset/{token:path}", "/reset/REDACTED"),
    ("/u/7/reset/abc/x", "/u/{user_id}/reset/{resetToken}/x", "/u/7/reset/REDACTED/x"),
    ("/other/abc", "/reset/{token}", "/REDACTED"),
    ("/reset", "/reset/{token}", "/REDACTED"),
    ("/status/404", "/status/{code}", "/status/404"),
    ("/items/7", "/items/{item_id}", "/items/7"),
]


def test_path_parameters_with_secret_names() -> None:
    """The value of a parameter with a secret name is redacted, with any prefix that a server removes."""
    for path, endpoint, shown in SECRET_PARAMETERS:
        assert DEFAULT_REDACTOR.route_path(path, endpoint) == shown
        assert DEFAULT_REDACTOR.has_secret_parameter(endpoint) == (shown != path)


def test_long_paths_are_cut() -> None:
    """1,152 characters of a path are scanned."""
    redactor = Redactor()
    assert redactor.is_plain_path("/a" * 576 + "/Password=1")
    assert redactor.path("/a" * 30_000) == "/a" * 576


ROUTES = ["/reset/{token}", "/reset/done", "/{tenant}/x/{secret}", "/f/{access_key}/y", "/p/{token:path}", "/a/{path}"]


UNMATCHED_PATHS = [
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
]


def test_unmatched_paths() -> None:
    """The segment at the place of a secret parameter is redacted although no route matched."""
    for path, shown in UNMATCHED_PATHS:
        redactor = Redactor(templates=lambda: ROUTES)
        for endpoint in ("unmatched", "redirect", "/a/{path}"):
            assert redactor.has_secret_parameter(endpoint)
            assert redactor.route_path(path, endpoint) == shown
        assert redactor.raw_path(path, redactor.unmatched_path) == shown
        assert redactor.route_path("/reset/done", "/reset/done") == "/reset/done"
        assert not Redactor().has_secret_parameter("unmatched")
        assert Redactor().unmatched_path(path) == path[:MAX_PATH_LENGTH]


def test_secret_parameters_without_a_matched_route() -> None:
    """A redirect, a mount's 404, a middleware's own response: neither span nor line shows the parameter."""
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


def test_remembered_results_are_bounded() -> None:
    """Paths, user agents, addresses, hosts, routes and names are remembered if they are short, and few of them."""
    redactor = Redactor()
    for number in range(MAX_CACHED_TEXTS + 10):
        redactor.path(f"/É{number}")
        redactor.path(f"/{number}")
        redactor.path(f"/h{number}/1")
        redactor.route_path("/x", f"/{number}")
        redactor.user_agent(b"%d" % number)
        redactor.address(f"10.0.{number // 256}.{number % 256}")
        redactor.host(b"h%d" % number)
        redactor.name(f"name {number}")
        redactor.query(f"p{number}=1")
    for long in ("/" + "x" * 5000, "y" * 5000, "/x" * 2500):
        redactor.path(long)
        redactor.user_agent(long.encode())
        redactor.address(long)
        redactor.host(long.encode())
        redactor.query(f"{long}=1")
        assert redactor.name(long) == long
    remembered = [each for each in gc.get_referents(redactor) if isinstance(each, dict | set)]
    assert len(remembered) >= 9
    for each in remembered:
        assert 0 < len(each) <= MAX_CACHED_TEXTS
        assert all(len(key) < 5000 for key in each)


def test_a_remembered_parameter_hides_values_only() -> None:
    """A parameter that was hidden once is shown without a value, and stays hidden with any other value."""
    redactor = Redactor(capture_query_parameters=["page"])
    for value in ("1", "2", "token=x", "%00"):
        assert redactor.query(f"a={value}&page=3&a=") == "a=REDACTED&page=3&a="
        assert redactor.query("a") == "REDACTED"


def test_a_function_sees_each_name_of_a_parameter() -> None:
    """Its responses may change, so none is remembered."""
    seen: list[str] = []
    redactor = Redactor(function=lambda text: seen.append(text) or text)  # type: ignore[func-returns-value]
    assert [redactor.query("a=1"), redactor.query("a=1")] == ["a=REDACTED"] * 2
    assert seen == ["a", "a"]


def test_a_secret_parameter_is_hidden_on_span_and_line(observed: Any) -> None:
    """The token of `/reset/{token}` is redacted on the span and in the line's URL; other paths stay."""
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
