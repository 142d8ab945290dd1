"""`install(app)`: wraps the built middleware stack of a FastAPI or Starlette app in the door."""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from fastapi_observe.metrics_endpoint import check_dependency
from fastapi_observe.middleware import InnerMiddleware, ObserveMiddleware, wrap_validation_handler
from fastapi_observe.observability import Observability
from fastapi_observe.requests.routing import mounted_apps
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp

_BUILDER = "build_middleware_stack"
_WRAPPED = "__observe_seamed__"


def install(app: Starlette, settings: ObserveSettings | None = None, **overrides: Any) -> Observability:
    """Give a FastAPI or Starlette app its traces, metrics and logs.

    Call it where the app is created, before or after routes, middleware and exception handlers are added. `overrides`
    are fields of `ObserveSettings`. The result stands in `app.state.observe` too; its `close()` uninstalls.

    Raises `SettingsError` (a `ValueError`) for wrong settings, `TypeError` for what is no app or no engine,
    `RuntimeError` for a second `install` and after the first request.
    """
    if not isinstance(app, Starlette):
        raise TypeError(
            f"install() needs a FastAPI or Starlette app, got {type(app).__name__}: "
            "give it the app itself, before it is wrapped in other ASGI middleware"
        )
    if getattr(app.state, "observe", None) is not None:
        raise RuntimeError("install(app) was called twice on the same app; call it once, where the app is created")
    if app.middleware_stack is not None and not getattr(app, "_is_instrumented_by_opentelemetry", False):
        raise RuntimeError("install(app) was called after the first request; call it where the app is created")
    loaded = ObserveSettings.load(settings, **overrides)
    if "service_name" not in loaded.model_fields_set and getattr(app, "title", "FastAPI") != "FastAPI":
        loaded = loaded.model_copy(update={"service_name": app.title})  # type: ignore[attr-defined]
    if loaded.metrics_dependency is not None:
        check_dependency()
    observability = Observability(app, loaded)
    try:
        for engine in loaded.engines:
            observability.instrument_engine(engine)
    except BaseException:  # what cannot be installed leaves nothing behind
        observability.close()
        raise
    observability.on_close(_disable_native_telemetry(app) if loaded.native == "own" else _nothing)
    _wrap_stack_builder(app, functools.partial(ObserveMiddleware, observability=observability), observability)
    app.state.observe = observability
    observability.on_close(functools.partial(delattr, app.state, "observe"))
    return observability


def _nothing() -> None:
    """Undo nothing."""


def _wrap_stack_builder(app: Starlette, door: Callable[[ASGIApp], ASGIApp], observability: Observability) -> None:
    """Have the app build its stack inside `door`, with a seam if it needs one, whenever that happens.

    The stack is built at the first request: everything the user adds until then stands inside the door. Apps mounted
    below likewise, without a door. `close` undoes it.
    """
    original = app.build_middleware_stack
    was_own = vars(app).get(_BUILDER)

    @functools.wraps(original)
    def build() -> ASGIApp:
        try:
            for mounted in mounted_apps(app):
                if mounted.middleware_stack is None and _WRAPPED not in vars(mounted):
                    _wrap_stack_builder(mounted, _pass_through, observability)
        except Exception as exc:  # noqa: BLE001 - routes may be of any class; a mounted app works without a seam
            observability.internal_errors("mounted", exc)
        with _with_inner_middleware(app, observability, always=door is _pass_through):
            stack = original()
        try:
            if door is not _pass_through:
                _warn_shadowed_route(app, observability.settings)
            return door(stack)
        except Exception as exc:  # noqa: BLE001 - without a door the app works, unseen
            observability.internal_errors("middleware.outer", exc)
            return stack

    def undo() -> None:
        delattr(app, _WRAPPED)
        if was_own is None:
            delattr(app, _BUILDER)
        else:
            setattr(app, _BUILDER, was_own)
        app.middleware_stack = None

    setattr(app, _BUILDER, build)
    setattr(app, _WRAPPED, True)
    app.middleware_stack = None
    observability.on_close(undo)


def _warn_shadowed_route(app: Starlette, settings: ObserveSettings) -> None:
    """Say that a route of the app's own is never reached, because the door answers its path."""
    path = settings.metrics_path
    if settings.metrics and any(getattr(route, "path", None) == path for route in app.routes):
        logging.getLogger("fastapi_observe").warning(
            "the app's own route %s is hidden: fastapi-observe answers there; install it with another metrics_path, "
            "or remove the route",
            path,
        )


def _pass_through(stack: ASGIApp) -> ASGIApp:
    """A mounted app has no door of its own: its requests come through that of the outer app."""
    return stack


@contextmanager
def _with_inner_middleware(app: Starlette, observability: Observability, *, always: bool) -> Iterator[None]:
    """Have the stack built with the seam innermost and the handlers of validation errors wrapped, then undo it.

    Without middleware and without a handler of `Exception` there is no seam: the router fills the door's own scope, and
    what is raised was answered with 500, after which the exchange waits for the exception. A mounted app `always` has
    one: it may stand in middleware that wraps it by hand.
    """
    middleware, handlers = app.user_middleware, app.exception_handlers
    try:
        observed = {
            kind: wrap_validation_handler(handler) if kind in _validation_errors() else handler
            for kind, handler in handlers.items()
        }
        if always or middleware or any(kind in handlers for kind in (Exception, 500)):
            app.user_middleware = [*middleware, Middleware(InnerMiddleware)]
        app.exception_handlers = observed
    except Exception as exc:  # noqa: BLE001 - as above
        observability.internal_errors("middleware.inner", exc)
    try:
        yield
    finally:
        app.user_middleware, app.exception_handlers = middleware, handlers


def _validation_errors() -> tuple[Any, ...]:
    """Return FastAPI's validation errors; none where FastAPI was never imported."""
    exceptions = sys.modules.get("fastapi.exceptions")
    names = ("RequestValidationError", "WebSocketRequestValidationError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def _disable_native_telemetry(app: Any) -> Callable[[], None]:
    """Switch FastAPI's native telemetry (0.142 and later) off for this app; return the undo.

    Its configuration is a private dict, read at each request; where it is missing there is nothing to take over.
    """
    config = getattr(app, "_telemetry", None)
    if not isinstance(config, dict):
        return _nothing
    before = {name: config[name] for name in ("tracing", "metrics", "logs") if name in config}
    config.update(dict.fromkeys(before, False))
    return functools.partial(config.update, before)
