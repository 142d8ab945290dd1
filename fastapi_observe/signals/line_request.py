"""The request line: built from an exchange, and for the usual ones encoded without building it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from fastapi_observe.records.redaction import redact_query
from fastapi_observe.signals.line_format import cut, describe_exception, encode_line

if TYPE_CHECKING:
    from fastapi_observe.records.exchange import Exchange
    from fastapi_observe.signals.line_format import Timestamps

REQUEST_MESSAGE: Final = "HTTP request completed"
WEBSOCKET_MESSAGE: Final = "WebSocket connection closed"
REQUEST_LOGGER: Final = "fastapi_observe.request"
"""Messages and logger of the request line."""

LONGEST_PATH: Final = 1024
LONGEST_AGENT: Final = 256
"""Most characters of a path and of a user agent."""

MOST_KEPT: Final = 2048
"""Most routes with a prepared line; then all are made anew."""


class RequestLines:
    """Makes request lines; `resource` are the keys that say who writes them.

    `client` and `query` are those of the ASGI scope, which is gone when a line is encoded late; `now` is in
    nanoseconds since the epoch.
    """

    def __init__(self, resource: dict[str, str], query_allow: frozenset[str], timestamps: Timestamps) -> None:
        self._resource = resource
        self._allow = query_allow
        self._timestamps = timestamps
        head = {"message": REQUEST_MESSAGE, "logger": REQUEST_LOGGER, **resource}
        self._head = orjson.dumps(head)[1:-1].decode()
        self._routes: dict[tuple[str, str, int, str], tuple[str, str]] = {}

    def build(self, exchange: Exchange, level: str, now: int, client: Any, query: Any) -> dict[str, Any]:
        """Return the line with whatever this exchange has to say."""
        url = cut(exchange.path, LONGEST_PATH)
        if query:
            url = f"{url}?{redact_query(query, self._allow)}"
        agent = exchange.headers.get(b"user-agent")
        fields: dict[str, Any] = {
            "method": exchange.method,
            "url": url,
            "endpoint": exchange.endpoint,
            "status_code": exchange.status_code,
            "outcome": exchange.outcome,
            "duration_ms": round(exchange.duration * 1000, 3),
            "request_size": exchange.request_size,
            "response_size": exchange.response_size,
            "user_agent": None if agent is None else agent[:LONGEST_AGENT].decode("latin-1"),
            "remote_addr": client[0] if client else None,
        }
        if exchange.ttfb is not None:
            fields["ttfb_ms"] = round(exchange.ttfb * 1000, 3)
        if exchange.error_type is not None:
            fields["error_type"] = exchange.error_type
        if exchange.websocket:
            fields["close_code"] = exchange.close_code  # type: ignore[attr-defined]
            fields["messages_received"] = exchange.messages_received  # type: ignore[attr-defined]
            fields["messages_sent"] = exchange.messages_sent  # type: ignore[attr-defined]
        ids = {"trace_id": exchange.trace_id, "span_id": exchange.span_id} if exchange.trace_id else {}
        if exchange.request_id:
            ids["request_id"] = exchange.request_id
        line: dict[str, Any] = {
            "timestamp": self._timestamps(now),
            "level": level,
            "message": WEBSOCKET_MESSAGE if exchange.websocket else REQUEST_MESSAGE,
            "logger": REQUEST_LOGGER,
            **self._resource,
            **ids,
            "fields": fields,
        }
        if exchange.exception is not None:
            line["exception"] = describe_exception(exchange.exception)
        return line

    def encode(self, exchange: Exchange, level: str, now: int, client: Any, query: Any) -> bytes:
        """Return the line of an exchange without error, stream or exception as bytes, its newline included."""
        path = exchange.path
        agent = exchange.headers.get(b"user-agent", b"").decode("latin-1")
        address = client[0] if client else ""
        short = len(path) + len(agent) <= LONGEST_AGENT
        if query or not exchange.trace_id or not (short and is_plain(path) and is_plain(agent) and is_plain(address)):
            return encode_line(self.build(exchange, level, now, client, query))
        route = exchange.method, exchange.endpoint, exchange.status_code, exchange.outcome
        before, between = self._routes.get(route) or self._prepare(route, level)
        shown_agent = f'"{agent}"' if agent else "null"
        shown_address = f'"{address}"' if address else "null"
        return (
            f'{{"timestamp":"{self._timestamps(now)}",{before}"trace_id":"{exchange.trace_id}",'
            f'"span_id":"{exchange.span_id}","request_id":"{exchange.request_id}",'
            f'"fields":{{"method":"{exchange.method}","url":"{path}",{between}'
            f'"duration_ms":{exchange.duration * 1000:.3f},"request_size":{exchange.request_size},'
            f'"response_size":{exchange.response_size},"user_agent":{shown_agent},"remote_addr":{shown_address}}}}}\n'
        ).encode()

    def _prepare(self, route: tuple[str, str, int, str], level: str) -> tuple[str, str]:
        """Keep what is the same in all lines of a route that end alike."""
        if len(self._routes) >= MOST_KEPT:
            self._routes.clear()
        _, endpoint, status_code, outcome = route
        fields = {"endpoint": endpoint, "status_code": status_code, "outcome": outcome}
        kept = f'"level":"{level}",{self._head},', f"{orjson.dumps(fields)[1:-1].decode()},"
        self._routes[route] = kept
        return kept


def is_plain(text: str) -> bool:
    """Tell whether `text` is the same in JSON: printable ASCII without quotes and backslashes."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
