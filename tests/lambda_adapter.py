"""A small stand-in for Mangum, for environments without it: calls an ASGI app for each event, without a lifespan."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Mangum:
    """Handles events of API Gateway, version 2.0."""

    def __init__(self, app: Any, lifespan: str = "auto") -> None:
        assert lifespan == "off"
        self._app = app
        self._loop = asyncio.new_event_loop()
        weakref.finalize(self, self._loop.close)

    def __call__(self, event: dict[str, Any], _context: object) -> dict[str, Any]:
        """Run the app for one event. Returns status and body."""
        http = event["requestContext"]["http"]
        headers = [(key.encode(), value.encode()) for key, value in event["headers"].items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "https",
            "method": http["method"], "path": event["rawPath"], "raw_path": event["rawPath"].encode(),
            "query_string": event["rawQueryString"].encode(), "root_path": "", "client": (http["sourceIp"], 0),
            "server": ("lambda", 443), "headers": headers,
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self._loop.run_until_complete(self._app(scope, receive, send))
        return {"statusCode": sent[0]["status"], "body": b"".join(one["body"] for one in sent[1:]).decode()}


def provide_mangum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import mangum` work until the end of the test, with this stand-in unless it is installed."""
    if importlib.util.find_spec("mangum") is None:
        module = ModuleType("mangum")
        module.Mangum = Mangum  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mangum", module)
