"""The usual request line, written without building it: what is the same for all requests of a route is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from fastapi_observe.records.exchange import Exchange

MOST_KEPT: Final = 2048
"""Most routes with a prepared line; then all are made anew."""

LONGEST: Final = 256
"""Most characters of path and user agent together: longer ones are cut, which is done elsewhere."""


class RequestLines:
    """Encodes request lines that have nothing unusual about them, as `encode_line` would, in a fraction of its time.

    `head` are the keys and values between `timestamp` and `trace_id`, but for `level`.
    """

    def __init__(self, head: dict[str, str]) -> None:
        self._head = orjson.dumps(head)[1:-1].decode()
        self._routes: dict[tuple[str, str, int, str], tuple[str, str]] = {}

    def encode(self, exchange: Exchange, level: str, timestamp: str, client: Any) -> bytes | None:
        """Return the line as bytes, its newline included; None if it has a text that needs more care."""
        route = exchange.method, exchange.endpoint, exchange.status_code, exchange.outcome
        kept = self._routes.get(route) or self._prepare(route, level)
        agent = exchange.headers.get(b"user-agent", b"").decode("latin-1")
        address = client[0] if client else ""
        url = exchange.path
        if len(url) + len(agent) > LONGEST or not (is_plain(url) and is_plain(agent) and is_plain(address)):
            return None
        shown_agent = f'"{agent}"' if agent else "null"
        shown_address = f'"{address}"' if address else "null"
        return (
            f'{{"timestamp":"{timestamp}",{kept[0]}"trace_id":"{exchange.trace_id}","span_id":"{exchange.span_id}",'
            f'"request_id":"{exchange.request_id}","fields":{{"method":"{exchange.method}","url":"{url}",{kept[1]}'
            f'"duration_ms":{exchange.duration * 1000:.3f},"request_size":{exchange.request_size},'
            f'"response_size":{exchange.response_size},"user_agent":{shown_agent},"remote_addr":{shown_address}}}}}\n'
        ).encode()

    def _prepare(self, route: tuple[str, str, int, str], level: str) -> tuple[str, str]:
        if len(self._routes) >= MOST_KEPT:
            self._routes.clear()
        _, endpoint, status_code, outcome = route
        fields = {"endpoint": endpoint, "status_code": status_code, "outcome": outcome}
        kept = self._routes[route] = f'"level":"{level}",{self._head},', f"{orjson.dumps(fields)[1:-1].decode()},"
        return kept


def is_plain(text: str) -> bool:
    """Tell whether `text` is the same in JSON: printable ASCII without quotes and backslashes."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
