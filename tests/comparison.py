"""Asks an app message by message, so that two apps can be compared: with and without install."""

from __future__ import annotations

from typing import Any, NamedTuple

import anyio

from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE

OURS = (b"x-request-id", b"traceresponse")
GZIP_MAGIC = b"\x1f\x8b\x08"


def bare(app: Any) -> Any:
    """Return an app as it is in a process without install: FastAPI's native telemetry is off.

    It wakes up in every app of the process once there is a global tracer provider, which install sets.
    """
    telemetry = getattr(app, "_telemetry", {})
    telemetry.update({name: False for name in ("tracing", "metrics", "logs") if name in telemetry})
    return app


class Answer(NamedTuple):
    """What a server saw of one call of an app."""

    messages: list[Any]
    raised: Any
    seen_by_app: list[Any]


class Server:
    """Gives an app its messages, takes what it sends, fails where the test says so."""

    def __init__(
        self,
        incoming: list[Any],
        fail_at: int | None = None,
        failure: BaseException | None = None,
        *,
        leaves: bool = True,
    ) -> None:
        self._incoming = list(incoming)
        self._leaves = leaves
        self._fail_at = fail_at
        self._failure = failure
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        """Return the next message of the client, at last that it has left."""
        await anyio.lowlevel.checkpoint()
        return self._incoming.pop(0) if self._incoming else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Take a message of the app."""
        await anyio.lowlevel.checkpoint()
        at = len(self.sent)
        self.sent.append(normalised(message))
        if at == self._fail_at and self._failure is not None:
            raise self._failure


def normalised(message: Any) -> Any:
    """Return a message without our headers and without gzip's clock; no headers and none given are the same."""
    if not isinstance(message, dict):
        return message
    shown = dict(message)
    if hasattr(shown.get("headers"), "__next__"):
        shown["headers"] = list(shown["headers"])
    if shown.get("type") in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
        headers = shown.get("headers", ())
        try:
            shown["headers"] = [pair for pair in headers if not (len(pair) and pair[0] in OURS)]
        except TypeError:
            shown["headers"] = headers
    body = shown.get("body")
    if isinstance(body, bytes) and body.startswith(GZIP_MAGIC):
        shown["body"] = body[:4] + bytes(4) + body[8:]  # RFC 1952: the seconds since 1970 at which it was packed
    return shown


async def ask(app: Any, scope: dict[str, Any], server: Server, seen_by_app: list[Any]) -> Answer:
    """Call the app once."""
    raised: Any = None
    try:
        await app(scope, server.receive, server.send)
    except BaseException as exc:  # noqa: BLE001 - the exception is what is looked at
        attributes = {name: value for name, value in vars(exc).items() if name != EXCEPTION_IDS_ATTRIBUTE}
        raised = type(exc), repr(exc.args), attributes, any(exc is each for each in seen_by_app)
    return Answer(server.sent, raised, [shown(each) for each in seen_by_app])


def shown(value: Any) -> Any:
    """Return an exception in a form that compares equal to another of its kind."""
    return (type(value), repr(value.args)) if isinstance(value, BaseException) else value


def http_scope(path: str = "/", method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return the scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "extensions": {"http.response.pathsend": {}, "http.response.trailers": {}},
        **more,
    }


def websocket_scope(path: str = "/ws", **more: Any) -> dict[str, Any]:
    """Return the scope of a connection."""
    scope = http_scope(path, **{"type": "websocket", "scheme": "ws", "subprotocols": [], **more})
    del scope["method"]
    return scope
