"""The request line: encoded from what was taken down, it is the line that would have been built."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.logs.line import Timestamps, encode_line
from fastapi_observe.logs.request_line import MAX_CACHED_PARTS, RequestLineEncoder
from fastapi_observe.records.request import RequestRecord
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

LINES = RequestLineEncoder(
    {"service": 'a "shop"', "environment": "production", "version": ""}, DEFAULT_REDACTOR, Timestamps()
)

STARTED = 1_700_000_000_123_456_789


def exchange_of(**facts: Any) -> RequestRecord:
    """Build the record of a request that has ended well."""
    scope = {"type": "http", "path": "/", "headers": [], **facts.pop("scope", {})}
    exchange = RequestRecord(scope, None, None, InternalErrors(), lambda _: None)  # type: ignore[arg-type]
    exchange.status_code, exchange.outcome, exchange.duration = 200, "ok", 0.0015
    exchange.started_ns = STARTED
    for name, value in facts.items():
        setattr(exchange, name, value)
    return exchange


@given(
    path=st.text(max_size=1200),
    agent=st.none() | st.binary(max_size=300),
    client=st.none() | st.tuples(st.text(max_size=20) | st.none(), st.integers(0, 65535)),
    endpoint=st.text(max_size=40),
    ids=st.sampled_from([("", ""), ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")]),
    request_id=st.sampled_from(["", "request-1"]),
)
def test_what_was_taken_down_is_what_would_be_built(  # noqa: PLR0913, PLR0917 - what differs between requests
    path: str, agent: bytes | None, client: Any, endpoint: str, ids: tuple[str, str], request_id: str
) -> None:
    """Both ways give the same object, whatever a client sends, and one line each."""
    headers = [] if agent is None else [(b"user-agent", agent)]
    exchange = exchange_of(
        scope={"path": path, "headers": headers, "client": client},
        endpoint=endpoint,
        trace_id=ids[0],
        span_id=ids[1],
        request_id=request_id,
    )
    record = LINES.capture(exchange, "info")
    assert record is not None
    fast, built = (
        LINES.encode(record),
        encode_line(LINES.build(exchange, "info", STARTED + 1_500_000)),
    )
    assert json.loads(fast) == json.loads(built)
    assert fast.count(b"\n") == 1
    assert fast.endswith(b"}\n")
    assert len(fast) <= 16_384


def test_more_than_the_usual_is_not_taken_down() -> None:
    """A query, an error and a stream need more care: their lines are built at once."""
    unusual: list[dict[str, Any]] = [
        {"scope": {"query_string": b"q=1"}},
        {"error_type": "ValueError"},
        {"ttfb": 0.1},
    ]
    assert [LINES.capture(exchange_of(**facts), "info") for facts in unusual] == [None, None, None]


def test_few_routes_are_remembered() -> None:
    """However many route templates there are, the prepared pieces of a bounded number are kept."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    for number in range(MAX_CACHED_PARTS + 2):
        record = lines.capture(exchange_of(endpoint=f"/{number}"), "info")
        assert record is not None
        assert json.loads(lines.encode(record))["fields"]["endpoint"] == f"/{number}"
    assert len(lines._route_parts) == 2


def test_few_clients_are_remembered() -> None:
    """However many user agents come, a bounded number of short ones is kept."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    agents = [b"x" * 2000, *(b"agent %d" % number for number in range(MAX_CACHED_PARTS + 2))]
    for agent in agents:
        record = lines.capture(exchange_of(scope={"headers": [(b"user-agent", agent)]}), "info")
        assert record is not None
        assert json.loads(lines.encode(record))["fields"]["user_agent"] == agent[:256].decode()
    assert len(lines._client_parts) == 2


def test_what_is_kept_of_a_client_is_short() -> None:
    """A proxy may pass on a megabyte as the address of a client: neither the queue nor the prepared pieces keep it."""
    lines = RequestLineEncoder({}, DEFAULT_REDACTOR, Timestamps())
    record = lines.capture(
        exchange_of(scope={"client": ("x" * 1_000_000, 0), "headers": [(b"user-agent", b"x" * 1_000_000)]}), "info"
    )
    assert record is not None
    assert max(len(part) for part in record if isinstance(part, str | bytes)) < 1000
    assert json.loads(lines.encode(record))["fields"]["remote_addr"] == "REDACTED"
    record = lines.capture(exchange_of(scope={"client": ("x" * 1_000_000, 0)}), "info")
    assert record is not None
    lines.encode(record)
    assert lines._client_parts == {}
