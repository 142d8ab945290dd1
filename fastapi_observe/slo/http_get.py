"""GET requests of the command line: bounded in size and time, without redirects and proxies."""

from __future__ import annotations

import ssl
import threading
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any, Final

import httpx

from fastapi_observe.internal.networks import PRIVATE_NETWORKS, address_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

READ_TIMEOUT: Final = 10.0
"""Maximum time without a byte from the server, in seconds."""

TOTAL_TIMEOUT: Final = 60.0
"""Maximum time of one request, in seconds."""

MAX_DOWNLOAD_BYTES: Final = 64 * 1_048_576
"""Maximum size of a response body."""


class GetError(Exception):
    """Raised for a request that failed. `reason` says what happened, `step` what to do next."""

    def __init__(self, reason: str, step: str) -> None:
        super().__init__(f"{reason}; {step}")
        self.reason = reason
        self.step = step


@contextmanager
def get(
    url: str,
    *,
    headers: Mapping[str, str],
    token: str | None = None,
    allow_http_token: bool = False,
    total_timeout: float | None = None,
) -> Iterator[httpx.Response]:
    """Send a GET request and yield the response. Read its body with `iter_body`.

    No redirect is followed and no variable of the environment is read, such as those for proxies. A bearer token is
    sent over plain http to a private address only, unless `allow_http_token`. It takes `TOTAL_TIMEOUT` at most, unless
    `total_timeout` is given. Raises `GetError`, also from inside the
    `with` block if reading the body fails.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "fastapi-observe", **headers}
    if token is not None:
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise GetError("the token is not an ASCII word", "correct --token")
        headers["Authorization"] = f"Bearer {token}"
    plain = token is not None and not allow_http_token and not url.lower().startswith("https:")
    deadline = _Deadline(total_timeout or TOTAL_TIMEOUT, private_only=plain)
    try:
        # The context of `ssl` trusts the certificates of the system, as other programs of this machine do.
        with (
            deadline,
            httpx.Client(verify=ssl.create_default_context(), trust_env=False, timeout=READ_TIMEOUT) as client,
            client.stream("GET", url, headers=headers, extensions={"trace": deadline.on_event}) as response,
        ):
            yield response
            if deadline.expired.is_set():  # a body without a length ends where the connection is shut down
                raise TimeoutError
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise _describe(error, late=deadline.expired.is_set()) from error


def iter_body(response: httpx.Response) -> Iterator[bytes]:
    """Yield the body in chunks, undecoded. Raises `GetError` once it exceeds `MAX_DOWNLOAD_BYTES`."""
    size = 0
    for chunk in response.iter_raw():
        size += len(chunk)
        if size > MAX_DOWNLOAD_BYTES:
            raise GetError(f"the response has more than {MAX_DOWNLOAD_BYTES // 1_048_576} MiB", "request less of it")
        yield chunk


class _Deadline:
    """Ends a request after `total_timeout` seconds, and before the token is sent to a public address if `private_only`.

    The timeouts of httpx apply to a single read, so that a server which sends a byte at a time would never time out.
    """

    def __init__(self, total_timeout: float, *, private_only: bool) -> None:
        self.expired = threading.Event()
        self._private_only = private_only
        self._socket: Any = None
        self._timer = threading.Timer(total_timeout, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def on_event(self, name: str, info: dict[str, Any]) -> None:
        """Check the address of a new connection. Called by httpcore, before it sends the request."""
        if name not in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            return
        stream = info["return_value"]
        self._socket = stream.get_extra_info("socket")
        # Checked after the socket is known: if the timer ran earlier, it found no socket to shut down.
        if self.expired.is_set():
            stream.close()
            raise TimeoutError
        if self._private_only and not address_in(str(self._socket.getpeername()[0]), PRIVATE_NETWORKS):
            stream.close()  # httpcore does not know the connection yet
            raise GetError(
                "the token would be sent over plain http to a public address", "use https, or pass --allow-http-token"
            )

    def _expire(self) -> None:
        self.expired.set()
        with suppress(OSError, AttributeError):  # not connected yet, or closed already
            self._socket.shutdown(SHUT_RDWR)


def _describe(error: Exception, *, late: bool) -> GetError:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    if late or isinstance(error, httpx.TimeoutException):
        return GetError("no response in time", "check that the server is up and not overloaded")
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return GetError(f"TLS failed ({cause.reason or cause})", "check scheme and certificate")
    if isinstance(error, httpx.ProtocolError):
        return GetError(f"broken response ({error})", "use the URL of an HTTP server")
    reason = next((each.strerror for each in causes if isinstance(each, OSError) and each.strerror), str(error))
    return GetError(reason, "start the server, or correct host and port")
