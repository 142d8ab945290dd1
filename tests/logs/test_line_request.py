"""The fast encoder of request lines: its line is the one that would have been built."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tools import held

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.logs.line import Timestamps, encode_line
from fastapi_observe.logs.request_line import MAX_CACHED_PARTS, RequestLineEncoder
from fastapi_observe.records.request import RequestRecord
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR, Redactor

LINES = RequestLineEncoder(
    {"service": 'a "shop"', "environment": "production", "version": ""}, DEFAULT_REDACTOR, Timestamps()
)

STARTED = 1_700_000_000_123_456_789


def record_of(**facts: Any) -> RequestRecord:
    """Build the record of a successful request."""
    scope = {"type": "http", "path": "/", "headers": [], **facts.pop("scope", {})}
    record = RequestRecord(scope, None, None, InternalErrors(), lambda _: None)  # type: ignore[arg-type]
    record.status_code, record.outcome, record.duration = 200, "ok", 0.0015
    record.started_ns = STARTED
    for name, value in facts.items():
        setattr(record, name, value)
    return record


@given(
    path=st.text(max_size=1200),
    query=st.binary(max_size=1300) | st.sampled_from([b"", b"a=1", b"a=1;b", b"page=2&token=x&page=3"]),
    agent=st.none() | st.binary(max_size=300),
    client=st.none() | st.tuples(st.text(max_size=20) | st.none(), st.integers(0, 65535)),
    endpoint=st.text(max_size=40),
    ids=st.sampled_from([("", ""), ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")]),
    request_id=st.sampled_from(["", "request-1"]),
    sampled=st.sampled_from(["head", "tail", False]),
)
def test_the_encoded_line_is_the_built_line(  # noqa: PLR0913, PLR0917 - what differs between requests
    path: str,
    query: bytes,
    agent: bytes | None,
    client: Any,
    endpoint: str,
    ids: tuple[str, str],
    request_id: str,
    sampled: Any,
) -> None:
    """Both ways give the same object, for any values of a client, and one line each."""
    headers = [] if agent is None else [(b"user-agent", agent)]
    record = record_of(
        scope={"path": path, "query_string": query, "headers": headers, "client": client},
        endpoint=endpoint,
        trace_id=ids[0],
        span_id=ids[1],
        request_id=request_id,
        sampled=sampled,
    )
    parts = LINES.capture(record, "info")
    assert parts is not None
    fast, built = (
        LINES.encode(parts),
        encode_line(LINES.build(record, "info", STARTED + 1_500_000)),
    )
    assert json.loads(fast) == json.loads(built)
    assert json.loads(fast)["fields"]["sampled"] == sampled
    assert fast.count(b"\n") == 1
    assert fast.endswith(b"}\n")
    assert len(fast) <= 16_384


def test_other_requests_are_not_captured() -> None:
    """Lines with an error or a stream, and lines with a query that a function of the user redacts, are built."""
    unusual: list[dict[str, Any]] = [
        {"error_type": "ValueError"},
        {"ttfb": 0.1},
    ]
    assert [LINES.capture(record_of(**facts), "info") for facts in unusual] == [None, None]
    lines = RequestLineEncoder({}, Redactor(function=str), Timestamps())
    assert lines.capture(record_of(scope={"query_string": b"q=1"}), "info") is None


def test_the_cache_of_routes_is_bounded() -> None:
    """It is emptied when it is full."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    full = 0
    for number in range(MAX_CACHED_PARTS + 2):
        parts = lines.capture(record_of(endpoint=f"/{number}"), "info")
        assert parts is not None
        assert json.loads(lines.encode(parts))["fields"]["endpoint"] == f"/{number}"
        full = max(full, held(lines) if number % MAX_CACHED_PARTS == MAX_CACHED_PARTS - 1 else 0)
    assert held(lines) < full / 2


def test_the_cache_of_clients_is_bounded() -> None:
    """It is emptied when it is full, and keeps no long user agent."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    agents = [b"x" * 2000, *(b"agent %d" % number for number in range(MAX_CACHED_PARTS + 2))]
    full = 0
    for agent in agents:
        parts = lines.capture(record_of(scope={"headers": [(b"user-agent", agent)]}), "info")
        assert parts is not None
        assert json.loads(lines.encode(parts))["fields"]["user_agent"] == agent[:256].decode()
        full = max(full, held(lines) if agent == agents[MAX_CACHED_PARTS] else 0)
    assert held(lines) < full / 2


def test_long_values_of_a_client_are_not_kept() -> None:
    """A proxy may pass on a megabyte as the address of a client: neither queue nor cache keeps it."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    parts = lines.capture(
        record_of(scope={"client": ("x" * 1_000_000, 0), "headers": [(b"user-agent", b"x" * 1_000_000)]}), "info"
    )
    assert parts is not None
    assert max(len(part) for part in parts if isinstance(part, str | bytes)) < 1000
    assert json.loads(lines.encode(parts))["fields"]["remote_addr"] == "REDACTED"
    parts = lines.capture(record_of(scope={"client": ("x" * 1_000_000, 0)}), "info")
    assert parts is not None
    lines.encode(parts)
    del parts
    assert held(lines) < 200_000
