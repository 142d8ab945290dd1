"""A client of Redis that is not part of the package: one class, public names only, and everything about a query."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from libraries import redis_server
from starlette.testclient import TestClient

from fastapi_observe import get_observability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen


class RedisClient:
    """A client that speaks Redis' protocol. What makes it observed is one `with` block."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._answers = self._socket.makefile("rb")

    def execute(self, command: str, *arguments: str) -> str:
        """Send a command and return the response. Raises `RuntimeError` for an error."""
        with get_observability().db.query(command, system="redis") as query:
            words = [word.encode() for word in (command, *arguments)]
            self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
            answer = self._answers.readline().decode().strip()
            if answer.startswith("-"):
                raise RuntimeError(answer)
            if answer.startswith("$") and answer != "$-1":
                query.set_row_count(1)
                return self._answers.readline().decode().strip()
            return answer

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()


@pytest.fixture
def redis() -> Iterator[RedisClient]:
    """Return a client of a real server."""
    with redis_server() as port, closing(RedisClient(port)) as client:
        yield client


def test_it_is_measured_like_every_client(observed: Callable[..., Seen], redis: RedisClient) -> None:
    """Span, counter, duration, time of the request, N+1 and the line of a failure, and no table names it."""
    app = FastAPI()

    @app.get("/")
    def endpoint() -> str:
        redis.execute("SET", "key", "geheim")
        for _ in range(11):
            redis.execute("GET", "key")
        with pytest.raises(RuntimeError):
            redis.execute("LPUSH", "key", "1")
        return redis.execute("GET", "key")

    seen = observed(app)
    with TestClient(app) as client:
        assert client.get("/").json() == "geheim"
    assert seen.samples("db_queries_total") == {
        (("operation", "SET"), ("table", "unknown")): 1,
        (("operation", "GET"), ("table", "unknown")): 12,
        (("operation", "LPUSH"), ("table", "unknown")): 1,
    }
    assert seen.sample("db_query_duration_seconds_count", operation="GET", table="unknown") == 12
    assert seen.sample("db_query_errors_total", operation="LPUSH", table="unknown", error_type="RuntimeError") == 1
    assert seen.total("db_repeated_queries_total") == 1
    fields = seen.request_lines[0]["fields"]
    assert fields["db_count"] == 14
    assert 0 < fields["db_ms"] <= fields["duration_ms"]
    (failed,) = [line for line in seen.lines if line["message"] == "database query failed"]
    assert failed["fields"]["db.system.name"] == "redis"
    spans = [span for span in seen.spans if span.kind.name == "CLIENT"]
    assert [span.name for span in spans] == ["SET", *["GET"] * 11, "LPUSH", "GET"]
    (server,) = seen.server_spans
    assert {span.parent.span_id for span in spans if span.parent is not None} == {server.context.span_id}
    assert "geheim" not in str([dict(span.attributes or {}) for span in spans])
