"""How `/metrics` is answered on the app's own port: who may read it, and the answer, rendered in a worker thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics.scrapes import SharedScrapes, send_body
from fastapi_observe.requests.access import CHALLENGE, MetricsAccess

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_observe.observability import Observability

TEXT_PLAIN: Final = (b"content-type", b"text/plain; charset=utf-8")
UNAUTHORIZED_BODY: Final = b"Unauthorized"
UNAUTHORIZED_HEADERS: Final = (TEXT_PLAIN, (b"content-length", str(len(UNAUTHORIZED_BODY)).encode()), CHALLENGE)
"""Who guesses tokens is answered in one piece, at less than the app's own 404 costs."""


class MetricsEndpoint:
    """Answers requests for the metrics of one installed app."""

    def __init__(self, observability: Observability) -> None:
        settings = observability.settings
        token = settings.metrics_token
        self._observability = observability
        here = settings.metrics and settings.metrics_port is None
        self.path = settings.metrics_path if here else None
        self._access = MetricsAccess(settings.metrics_access, None if token is None else token.get_secret_value())
        self._waiting: tuple[Any, SharedScrapes] | None = None
        self._guarded: ASGIApp | None = None
        if here and settings.metrics_dependency is not None:
            self._guarded = dependency_app(
                settings.metrics_dependency, settings.metrics_path, self.send_metrics, observability.app
            )

    def handles(self, scope: Scope) -> bool:
        """Tell whether a request is a scrape that is answered here; who may not read is the app's to answer.

        With a token or a dependency to ask for, whoever comes is answered here.
        """
        if scope["type"] != "http" or scope.get("method") not in {"GET", "HEAD"}:
            return False
        if scope.get("path", "").removeprefix(scope.get("root_path", "")) != self.path:
            return False
        if self._guarded is not None or self._access.requires_token:
            return True
        try:
            return self._access.allows(scope, dict(scope.get("headers") or ()))
        except Exception as exc:  # noqa: BLE001 - the user's function: who is not let in by it stays outside
            self._observability.internal_errors("metrics.access", exc)
            return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape."""
        if self._guarded is not None:
            scope["fastapi.telemetry"] = None
            await self._guarded({**scope, "path": self.path, "root_path": ""}, receive, send)
        elif self._access.requires_token and not self._access.allows(scope, dict(scope.get("headers") or ())):
            await send({"type": "http.response.start", "status": 401, "headers": list(UNAUTHORIZED_HEADERS)})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else UNAUTHORIZED_BODY})
        else:
            await self.send_metrics(scope, send)

    async def send_metrics(self, scope: Scope, send: Send) -> None:
        """Answer with the metrics, rendered in a worker thread."""
        observability = self._observability
        status = 200
        try:
            observability.on_startup()
            headers = {name: value.decode("latin-1") for name, value in scope.get("headers") or ()}
            head, body = await self._scrapes()(
                observability.metrics.render, headers.get(b"accept", ""), headers.get(b"accept-encoding", "")
            )
        except Exception as exc:  # noqa: BLE001 - a scrape that fails says so in HTTP, not by a broken connection
            observability.internal_errors("metrics.render", exc)
            status, head, body = 500, [TEXT_PLAIN], b"The metrics cannot be shown."
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send_body(send, b"" if scope["method"] == "HEAD" else body)

    def _scrapes(self) -> SharedScrapes:
        """Return those who wait for an answer in this event loop."""
        loop = self._observability.loop
        if self._waiting is None or self._waiting[0] is not loop:
            self._waiting = loop, SharedScrapes(self._observability.metrics.scrapes)
        return self._waiting[1]


def check_dependency() -> None:
    """Raise `TypeError` where there is no FastAPI to solve a `metrics_dependency`."""
    try:
        import fastapi  # noqa: F401, PLC0415 - Starlette alone is enough for the rest
    except ImportError:
        raise TypeError("metrics_dependency needs FastAPI: install fastapi, or use metrics_token") from None


def dependency_app(dependency: Any, path: str, answer: Any, app: Any) -> ASGIApp:
    """Return an app that answers `path` for whom the FastAPI dependency lets in.

    It is told as it is in the user's app: with its state, its overrides of dependencies and its exception handlers.
    """
    from fastapi import Depends, FastAPI, Response  # noqa: PLC0415 - Starlette alone is enough for the rest
    from fastapi.params import Depends as Given  # noqa: PLC0415 - as above

    class Answered(Response):
        """The metrics as a response of FastAPI's."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's order
            await answer(scope, send)

    def metrics() -> Response:
        return Answered()

    given = dependency if isinstance(dependency, Given) else Depends(dependency)
    inner = FastAPI(openapi_url=None, dependencies=[given])
    inner.state = app.state
    inner.exception_handlers = app.exception_handlers
    inner.dependency_overrides = getattr(app, "dependency_overrides", {})
    inner.add_api_route(path, metrics, methods=["GET", "HEAD"])
    return inner
