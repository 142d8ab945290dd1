"""`MetricsEndpoint`: serves `/metrics` on the app's own port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fastapi_observe.internal.fastapi import TELEMETRY_SCOPE_KEY
from fastapi_observe.metrics.scrapes import SharedScrapes, send_body
from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.requests.access import CHALLENGE, CONSOLE_HEADER, DOCTOR_AGENT, MetricsAccess, is_from_doctor
from fastapi_observe.requests.routing import list_endpoints, path_in_app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_observe.observability import Observability

_UNENCODED: Final = "/:@!$&'()*+,;=~"
"""Characters of a path that need no percent-encoding, apart from letters, digits and `-._` (RFC 3986, 3.3)."""

TEXT_PLAIN: Final = (b"content-type", b"text/plain; charset=utf-8")
UNAUTHORIZED_BODY: Final = b"Unauthorized"
UNAUTHORIZED_HEADERS: Final = (TEXT_PLAIN, (b"content-length", str(len(UNAUTHORIZED_BODY)).encode()), CHALLENGE)
"""A response to a client that guesses tokens, cheaper than the app's own 404."""

_UNREPORTED: Final = SIGNAL_BITS["traces"] | SIGNAL_BITS["logs"] | SIGNAL_BITS["console"]
"""Signals that do not report a denied request of `doctor`."""


class MetricsEndpoint:
    """An ASGI app that serves the metrics of one installed app. `path` is None if they are not on the app's port."""

    def __init__(self, observability: Observability) -> None:
        settings = observability.settings
        token = settings.metrics_token
        self._observability = observability
        enabled = settings.metrics and settings.metrics_port is None
        self.path = settings.metrics_path if enabled else None
        self._access = MetricsAccess(settings.metrics_access, None if token is None else token.get_secret_value())
        self._scrapes = SharedScrapes(observability.metrics.scrapes)
        self._dependency_app: ASGIApp | None = None
        if enabled and settings.metrics_dependency is not None:
            self._dependency_app = dependency_app(
                settings.metrics_dependency, settings.metrics_path, self.send_metrics, observability.app
            )

    def handler(self, scope: Scope) -> ASGIApp | None:
        """Return what responds to a request for the metrics; None for the app itself.

        A client without access gets the app's own response, unless a token or a dependency is configured, or the app
        has a route of its own at the path, such as one that serves the same metrics to every client.
        """
        if scope["type"] != "http" or scope.get("method") not in {"GET", "HEAD"}:
            return None
        if path_in_app(scope) != self.path:
            return None
        try:
            if _is_literal(scope) and self._is_allowed(scope):
                return self
            return _send_not_found if has_own_route(self._observability.app, self.path) else None
        except Exception as exc:  # noqa: BLE001 - routes may be of any class
            self._observability.internal_errors("metrics.access", exc)
            return _send_not_found

    def _is_allowed(self, scope: Scope) -> bool:
        """Return whether a client has access, as far as that is known without a token or a dependency."""
        if self._dependency_app is not None or self._access.requires_token:
            return True
        try:
            headers = dict(scope.get("headers") or ())
            allowed = self._access.allows(scope, headers)
            if not allowed:
                self._access.log_denied(scope, headers)
        except Exception as exc:  # noqa: BLE001 - the user's function: an error denies access
            self._observability.internal_errors("metrics.access", exc)
            return False
        return allowed

    def excluded_signals(self, scope: Scope) -> int:
        """Return the signals that do not report a request that is not a scrape to respond to.

        A request for the metrics by which `doctor` finds out that public clients are denied is counted, and no more.
        """
        return _UNREPORTED if path_in_app(scope) == self.path and is_from_doctor(scope) else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a scrape."""
        if self._dependency_app is not None:
            scope[TELEMETRY_SCOPE_KEY] = None
            await self._dependency_app({**scope, "path": self.path, "root_path": ""}, receive, send)
        elif self._access.requires_token and not self._access.allows(scope, dict(scope.get("headers") or ())):
            self._access.log_denied(scope, {})
            await send({"type": "http.response.start", "status": 401, "headers": list(UNAUTHORIZED_HEADERS)})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else UNAUTHORIZED_BODY})
        else:
            await self.send_metrics(scope, send)

    async def send_metrics(self, scope: Scope, send: Send) -> None:
        """Send the metrics, rendered in a worker thread."""
        observability = self._observability
        status = 200
        try:
            observability.on_startup()
            headers = {name: value.decode("latin-1") for name, value in scope.get("headers") or ()}
            head, body = await self._scrapes(
                observability.metrics.render, headers.get(b"accept", ""), headers.get(b"accept-encoding", "")
            )
            if headers.get(b"user-agent") == DOCTOR_AGENT:
                path = observability.settings.console_path if observability.settings.serves_console else ""
                head = [*head, (CONSOLE_HEADER, path.encode())]
        except Exception as exc:  # noqa: BLE001 - a scrape that fails gets a response, not a closed connection
            observability.internal_errors("metrics.render", exc)
            status, head, body = 500, [TEXT_PLAIN], b"Cannot render the metrics."
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send_body(send, b"" if scope["method"] == "HEAD" else body)


def has_own_route(app: Any, path: str | None) -> bool:
    """Return whether a route of the app, and not one for any path, responds to GET requests for this path."""
    return any(
        endpoint.template == path and not endpoint.websocket and (not endpoint.methods or "GET" in endpoint.methods)
        for endpoint in list_endpoints(app)
    )


async def _send_not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
    """Respond to a client without access whose request the app's own route would serve."""
    body = b"Not Found"
    headers = [TEXT_PLAIN, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _is_literal(scope: Scope) -> bool:
    """Return whether the path was sent as it is, without needless percent-encoding.

    A proxy that denies `/metrics` by comparing the path as sent lets `/%6detrics` pass.
    """
    raw_path: bytes | None = scope.get("raw_path")
    if raw_path is None:  # an optional key of ASGI
        return True
    # Some frameworks remove the root path from the path of a mounted app.
    path, root = scope["path"], scope.get("root_path", "")
    return raw_path.partition(b"?")[0].decode("latin-1") in {
        quote(path, safe=_UNENCODED),
        quote(root + path, safe=_UNENCODED),
    }


def check_dependency() -> None:
    """Raise `TypeError` if FastAPI, which resolves `metrics_dependency`, is not installed."""
    try:
        import fastapi  # noqa: F401, PLC0415 - all else works with Starlette alone
    except ImportError:
        raise TypeError("metrics_dependency requires FastAPI; install fastapi, or use metrics_token") from None


def dependency_app(dependency: Any, path: str, send_metrics: Any, app: Any) -> ASGIApp:
    """Return an app that serves `path` to requests that the FastAPI dependency accepts.

    It shares the state, the dependency overrides and the exception handlers of the user's app.
    """
    from fastapi import Depends, FastAPI, Response  # noqa: PLC0415 - all else works with Starlette alone
    from fastapi.params import Depends as DependsParam  # noqa: PLC0415 - as above

    class MetricsResponse(Response):
        """The metrics as a FastAPI response."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
            await send_metrics(scope, send)

    def metrics() -> Response:
        return MetricsResponse()

    depends = dependency if isinstance(dependency, DependsParam) else Depends(dependency)
    inner = FastAPI(openapi_url=None, dependencies=[depends])
    inner.state = app.state
    inner.exception_handlers = app.exception_handlers
    inner.dependency_overrides = getattr(app, "dependency_overrides", {})
    inner.add_api_route(path, metrics, methods=["GET", "HEAD"])
    return inner
