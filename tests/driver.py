"""An ASGI server by hand: it speaks to an app message by message, so a test decides when the client does what."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

TEXT = {"host": "shop.example.org", "user-agent": "driver/1"}


@dataclass
class Answer:
    """What an app sent and raised."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    raised: BaseException | None = None

    @property
    def status(self) -> int:
        """Status that was sent, 0 for none."""
        return next((int(each["status"]) for each in self.messages if each["type"].endswith("response.start")), 0)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that were sent."""
        start = next((each for each in self.messages if "headers" in each), {"headers": ()})
        return {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}

    @property
    def body(self) -> bytes:
        """Body that was sent."""
        return b"".join(each.get("body", b"") for each in self.messages if each["type"] == "http.response.body")


class Client:
    """One request on its way: `leave()` closes the connection."""

    def __init__(self, inbox: Iterable[dict[str, Any]], leave_after: int | None, *, strict: bool) -> None:
        self.answer = Answer()
        self._inbox = list(inbox)
        self._gone = asyncio.Event()
        self._left = False
        self._bodies = 0
        self._leave_after = leave_after
        self._strict = strict
        if leave_after == 0:
            self.leave()

    def leave(self) -> None:
        """Close the connection."""
        self._left = True
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        """Give the app what the client sends; then wait until it has left, or has its response."""
        if self._inbox:
            return self._inbox.pop(0)
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take what the app sends; a strict server (ASGI 2.4) raises once the client has left."""
        await asyncio.sleep(0)
        if self._left and self._strict:
            raise OSError("the client has left")
        self.answer.messages.append(message)
        if message["type"] in {"http.response.body", "http.response.pathsend"}:
            self._bodies += 1
            if not message.get("more_body", False):
                self._gone.set()
            if self._bodies == self._leave_after:
                self.leave()


def http_scope(path: str, method: str = "GET", headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return the scope of a request as uvicorn makes it."""
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in (TEXT | (headers or {})).items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        **more,
    }


def with_client(app: App, host: str, port: int) -> App:
    """Return the app as clients of this address reach it: the test client of old Starlette always has the same one."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "client": (host, port)} if "client" in scope else scope, receive, send)

    return run


async def ask(  # noqa: PLR0913 - what a request is
    app: App,
    path: str,
    method: str = "GET",
    *,
    headers: dict[str, str] | None = None,
    body: bytes | tuple[bytes, ...] = b"",
    leave_after: int | None = None,
    strict: bool = False,
    stop: Callable[[Client, asyncio.Task[None]], Awaitable[None]] | None = None,
    **scope: Any,
) -> Answer:
    """Send one request and return what came of it; what the app raised is in the result.

    `body` in several parts is never finished. `leave_after` is the number of body messages after which the client
    leaves (0: at once); `strict` makes sending to it an error. `stop` is given the client and the app's task.
    """
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    if isinstance(body, tuple):
        inbox = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    if strict:
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
    client = Client(inbox, leave_after, strict=strict)
    task = asyncio.ensure_future(_run(app, http_scope(path, method, headers, **scope), client.receive, client.send))
    if stop is not None:
        await stop(client, task)
    return await _finish(task, client.answer)


async def converse(app: App, path: str, *inbox: dict[str, Any], deaf: bool = False, **scope: Any) -> Answer:
    """Open a WebSocket connection; `inbox` is what the client sends after it has connected.

    A `deaf` client has left once it is accepted, and the server raises `OSError`.
    """
    answer = Answer()
    waiting = [{"type": "websocket.connect"}, *inbox]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if deaf and answer.messages:
            raise OSError("the client has left")
        answer.messages.append(message)

    connection = {**http_scope(path), "type": "websocket", "scheme": "ws", "subprotocols": [], **scope}
    del connection["method"]
    return await _finish(asyncio.ensure_future(_run(app, connection, receive, send)), answer)


async def live(app: App, *kinds: str) -> Answer:
    """Take an app through its lifespan: `startup`, then `shutdown`."""
    answer = Answer()
    waiting = [{"type": f"lifespan.{kind}"} for kind in kinds or ("startup", "shutdown")]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        answer.messages.append(message)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    return await _finish(asyncio.ensure_future(_run(app, scope, receive, send)), answer)


async def _run(app: App, scope: dict[str, Any], receive: Any, send: Any) -> None:
    await app(scope, receive, send)


async def _finish(task: asyncio.Task[None], answer: Answer) -> Answer:
    await asyncio.wait([task])
    answer.raised = asyncio.CancelledError() if task.cancelled() else task.exception()
    return answer
