"""`WebSocketRecord`: the record of one WebSocket connection, filled in as the ASGI messages pass."""

from __future__ import annotations

from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Final

from fastapi_observe.records.exceptions import error_type_of, is_cancellation
from fastapi_observe.records.request import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope, Send

    from fastapi_observe.internal.errors import InternalErrors

NORMAL_CLOSE_CODES: Final = frozenset({"1000", "1001", "1005", "1012"})
"""Close codes of a connection that ended well: normal, going away, no code given, server restart."""


class WebSocketRecord(RequestRecord):
    """One WebSocket connection, from the handshake to its close.

    `close_code` is the code (RFC 6455) that ended it: `denied` before it was accepted, `_other` for a code outside 1000
    to 1015 from the *client* or outside 1000 to 4999 from the app. `status_code` is 101 once accepted, else that of the
    denial. Sizes are the bytes of all messages.
    """

    __slots__ = (
        "accepted",
        "close_code",
        "closed_by_app",
        "count_received",
        "count_sent",
        "messages_received",
        "messages_sent",
    )

    websocket = True

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        internal_errors: InternalErrors,
        on_end: Callable[[RequestRecord], None],
    ) -> None:
        super().__init__(scope, receive, send, internal_errors, on_end)
        self.accepted = False
        self.close_code = ""
        self.closed_by_app = False
        self.messages_received = 0
        self.messages_sent = 0
        self.count_received: Callable[[], None] | None = None
        self.count_sent: Callable[[], None] | None = None

    async def receive(self) -> Message:
        """Return the client's next message to the app and count it."""
        message = await self._receive()
        try:
            kind = message["type"]
            if kind == "websocket.receive":
                self.messages_received += 1
                self.request_size += _length(message)
                if self.count_received is not None:
                    self.count_received()
            elif kind == "websocket.disconnect" and not self.close_code:
                code = message.get("code") or 1005
                # A client may send any code. RFC 6455, 7.4.1 defines these; others would make unbounded labels.
                self._close(str(code) if 1000 <= code <= 1015 else "_other")  # noqa: PLR2004 - see above
        except Exception as exc:  # noqa: BLE001 - whatever a server sends reaches the app
            self._internal_errors("request.receive", exc)
        return message

    async def send(self, message: Message) -> None:  # noqa: C901 - one branch for each kind of message
        """Pass the app's message to the server and record acceptance, messages and close."""
        try:
            kind = message["type"]
            if kind == "websocket.send":
                self.messages_sent += 1
                self.response_size += _length(message)
                if self.count_sent is not None:
                    self.count_sent()
            elif kind == "websocket.accept" and not self.accepted:
                self.accepted = True
                self.status_code = HTTPStatus.SWITCHING_PROTOCOLS.value
                message = self._with_extra_headers(message)
                if self.on_response_start is not None:
                    self.on_response_start(self)
            elif kind == "websocket.close" and not self.close_code:
                if self.accepted:
                    self.closed_by_app = True
                    code = message.get("code", 1000)
                    self._close(f"{code:d}" if isinstance(code, int) and 1000 <= code <= 4999 else "_other")  # noqa: PLR2004 - RFC 6455, 7.4.2
                else:
                    self.status_code = HTTPStatus.FORBIDDEN.value
                    self._close("denied")
            elif kind == "websocket.http.response.start" and not self.close_code:
                self.status_code = int(message["status"])
                message = self._with_extra_headers(message)
                self._close("denied")
        except Exception as exc:  # noqa: BLE001 - whatever an app sends reaches the server
            self._internal_errors("request.send", exc)
        try:
            await self._send(message)
        except OSError:  # since ASGI 2.4 servers raise it after a disconnect
            self.disconnected = True
            if not self.close_code:
                self._close("1006")
            raise

    def _with_extra_headers(self, message: Message) -> Message:
        headers = list(message.get("headers", ()))
        return {**message, "headers": [*headers, *self._headers_to_add(headers).items()]}

    def _close(self, code: str) -> None:
        self.close_code = code
        self.duration = perf_counter() - self.started
        self.complete = True

    def _set_outcome(self, raised: BaseException | None) -> None:
        disconnected = self.disconnected and isinstance(raised, OSError)
        if disconnected or type(raised).__name__ == "WebSocketDisconnect":
            raised = None
        if raised is not None and not is_cancellation(raised):
            self.exception = raised
            self.close_code = self.close_code or ("1011" if self.accepted else "denied")
            self.status_code = self.status_code or HTTPStatus.INTERNAL_SERVER_ERROR.value
            self.outcome, self.error_type = "server_error", error_type_of(raised)
            return
        if raised is not None:
            self.outcome = self.error_type = "cancelled"
        elif not self.complete:
            self.outcome = self.error_type = "incomplete_response"
        elif self.close_code == "denied":
            failed = self.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            self.outcome = "server_error" if failed else "client_error"
            self.error_type = str(self.status_code) if failed else None
        elif self.close_code in NORMAL_CLOSE_CODES:
            self.outcome = "ok"
        elif self.close_code == "1006":
            self.outcome = self.error_type = "client_disconnect"
        elif self.close_code == "1011" and self.closed_by_app:
            self.outcome, self.error_type = "server_error", self.close_code
        else:
            self.outcome = "client_error"
        self.close_code = self.close_code or "1006"
        self.status_code = self.status_code or HTTPStatus.INTERNAL_SERVER_ERROR.value


def _length(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len((message.get("text") or "").encode("utf-8", "surrogatepass"))
