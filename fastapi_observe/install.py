"""`install(app)`: puts `ObserveMiddleware` around the middleware stack of a FastAPI or Starlette app."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Final, Unpack
from weakref import WeakSet

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware

from fastapi_observe.instrumentation import attach_instrumentors
from fastapi_observe.internal.fastapi import disable_native_telemetry, validation_error_types
from fastapi_observe.internal.opentelemetry import is_instrumented_by_contrib, mark_as_instrumented, silence_contrib
from fastapi_observe.internal.starlette import is_builder, replace_stack_builder, stack_parts
from fastapi_observe.metrics.saturation import running_loop
from fastapi_observe.metrics_endpoint import check_dependency, has_own_route
from fastapi_observe.middleware import InnerMiddleware, ObserveMiddleware, wrap_validation_handler
from fastapi_observe.observability import Observability
from fastapi_observe.requests.routing import list_endpoints, mounted_apps
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.terminal_output import attach_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from fastapi_observe.console.console import Console
    from fastapi_observe.settings.options import Options

_WRAPPED: Final = "__observe_wrapped__"
"""Attribute of an app whose stack builder is wrapped, until `close`."""

_CLOSED: Final[WeakSet[Starlette]] = WeakSet()
"""Apps whose middleware stack `close` has discarded. They are not marked themselves: `close` leaves nothing on them."""


def install(app: Starlette, settings: ObserveSettings | None = None, **overrides: Unpack[Options]) -> Observability:
    """Add traces, metrics and logs to a FastAPI or Starlette app.

    Call it where the app is created, before or after routes, middleware and exception handlers are added. `overrides`
    are fields of `ObserveSettings`. The result is also `app.state.observe`; its `close()` uninstalls.

    Raises `SettingsError` (a `ValueError`) for invalid settings, `TypeError` if `app` is not such an app,
    `RuntimeError` for a second `install`, and after the first request unless the app was installed and closed before.
    """
    if not isinstance(app, Starlette):
        raise TypeError(
            f"install() expected a FastAPI or Starlette app, got {type(app).__name__}; "
            "pass the app itself, before it is wrapped in other ASGI middleware"
        )
    if getattr(app.state, "observe", None) is not None:
        raise RuntimeError("install(app) was called twice on the same app; call it once, where the app is created")
    if not _can_be_rebuilt(app) and not is_instrumented_by_contrib(app):
        raise RuntimeError("install(app) was called after the first request; call it where the app is created")
    loaded = ObserveSettings.load(settings, **overrides)
    if "service_name" not in loaded.model_fields_set and getattr(app, "title", "FastAPI") != "FastAPI":
        loaded = loaded.model_copy(update={"service_name": app.title})  # type: ignore[attr-defined]
    if loaded.metrics_dependency is not None:
        check_dependency()
    observability = Observability(app, loaded)
    _instrument_engines(observability)
    _disable_other_telemetry(app, observability)
    console = _make_console(observability)
    attach_terminal(observability, console)
    attach_instrumentors(observability)
    _wrap_stack_builder(app, functools.partial(_wrap_app, observability, console), observability)
    app.state.observe = observability
    observability.on_close(functools.partial(delattr, app.state, "observe"))
    for message in loaded.warnings():
        logging.getLogger("fastapi_observe").warning("%s", message)
    return observability


def _instrument_engines(observability: Observability) -> None:
    try:
        for engine in observability.settings.engines:
            observability.instrument_engine(engine)
    except BaseException:  # a failed install leaves nothing behind
        observability.close()
        raise


def _wrap_app(observability: Observability, console: Console | None, app: ASGIApp) -> ASGIApp:
    """Put the outer middleware around an app, and directly inside it contrib's if that describes the server span."""
    return ObserveMiddleware(observability.tracing.wrap_app(app), observability, console)


def _can_be_rebuilt(app: Starlette) -> bool:
    """Return whether a new middleware stack loses nothing: there is none yet, or `close` has discarded one before."""
    return app.middleware_stack is None or app in _CLOSED


def install_worker(settings: ObserveSettings | None = None, **overrides: Unpack[Options]) -> Observability:
    """Add traces, metrics and logs to a process without an app: a consumer of a queue, a scheduler, a script.

    Call it once, where the process starts; its work is measured by `observe.job`. `overrides` are fields of
    `ObserveSettings`. Metrics are served on `metrics_port` or exported with `otlp_metrics`. Everything is flushed when
    the process ends. Returns what `install` returns; its `close()` uninstalls.

    Raises `SettingsError` (a `ValueError`) for invalid settings.
    """
    loaded = ObserveSettings.load(settings, **overrides)
    observability = Observability(Starlette(), loaded)
    observability.logged_access = True  # the app's port, which that message is about, does not exist
    _instrument_engines(observability)
    attach_instrumentors(observability)
    observability.before_job = start = _WorkerStart(observability)
    start()
    for message in loaded.warnings():
        logging.getLogger("fastapi_observe").warning("%s", message)
    return observability


class _WorkerStart:
    """Starts what an app starts with its event loop: at the install, and again in a forked child or another loop."""

    def __init__(self, observability: Observability) -> None:
        self._observability = observability
        self._pid = 0

    def __call__(self) -> None:
        observability, loop = self._observability, running_loop()
        if self._pid == os.getpid() and (loop is None or loop is observability.loop):
            return
        observability.on_startup()
        if self._pid != os.getpid():
            self._pid = os.getpid()
            observability.push_until_exit()


def _make_console(observability: Observability) -> Console | None:
    """Return the development console if it is switched on. Otherwise nothing of it is imported."""
    if observability.settings.serves_console:
        from fastapi_observe.console.console import Console  # noqa: PLC0415 - see above

        console = Console(observability)
        console.start()
        observability.on_close(console.stop)
        return console
    return None


def _disable_other_telemetry(app: Starlette, observability: Observability) -> None:
    """Switch off FastAPI's native telemetry, and keep contrib's instrumentation from being added later."""
    undo = disable_native_telemetry(app) if observability.settings.server_span != "fastapi" else None
    if undo is not None:
        observability.on_close(undo)
    if observability.settings.tracing:
        observability.on_close(mark_as_instrumented(app))


def _wrap_stack_builder(
    app: Starlette, outer: Callable[[ASGIApp], ASGIApp] | None, observability: Observability
) -> None:
    """Make the app build its middleware stack inside `outer`, with the inner middleware where it is needed.

    The stack is built at the first request: everything that the user adds until then is inside. Mounted apps get the
    inner middleware only (`outer` is None), because their requests come through the middleware of the outer app.
    """

    def wrap(original: Callable[[], ASGIApp]) -> Callable[[], ASGIApp]:
        @functools.wraps(original)
        def build() -> ASGIApp:
            try:
                for mounted in mounted_apps(app):
                    if _WRAPPED not in vars(mounted) and _can_be_rebuilt(mounted):
                        _wrap_stack_builder(mounted, None, observability)
            except Exception as exc:  # noqa: BLE001 - routes may be of any class; mounted apps work without it
                observability.internal_errors("mounted", exc)
            stack = _build_with_inner_middleware(app, original, observability, always=outer is None)
            if outer is None:
                return stack
            try:
                _warn_shadowed_route(app, observability.settings)
                observed = outer(stack)
                # Wrapped by other code: contrib's instrumentation accepts Starlette's own outermost middleware only.
                return observed if is_builder(app, build) else ServerErrorMiddleware(observed)
            except Exception as exc:  # noqa: BLE001 - the app works without being observed
                observability.internal_errors("middleware.outer", exc)
                return stack

        return build

    undo_builder = replace_stack_builder(app, wrap, outer)
    setattr(app, _WRAPPED, True)

    def undo() -> None:
        delattr(app, _WRAPPED)
        undo_builder()
        _CLOSED.add(app)

    observability.on_close(undo)


def _build_with_inner_middleware(
    app: Starlette, build: Callable[[], ASGIApp], observability: Observability, *, always: bool
) -> ASGIApp:
    """Build the stack with the inner middleware innermost and the handlers of validation errors wrapped.

    Without user middleware and without a handler of `Exception` the inner middleware is left out: the router fills the
    scope that the outer middleware has, and an exception that reaches the outer middleware was answered with 500. A
    mounted app `always` has it, because it may be inside middleware that wraps it by hand.
    """
    middleware, handlers = app.user_middleware, app.exception_handlers
    try:
        validation_errors = validation_error_types()
        wrapped_handlers = {
            kind: wrap_validation_handler(handler) if kind in validation_errors else handler
            for kind, handler in handlers.items()
        }
        if always or middleware or any(kind in handlers for kind in (Exception, 500)):
            middleware = [*middleware, Middleware(InnerMiddleware)]
        handlers = wrapped_handlers
    except Exception as exc:  # noqa: BLE001 - the app works with the parts that it has
        observability.internal_errors("middleware.inner", exc)
    with stack_parts(app, middleware, handlers):
        stack = build()
    try:
        if observability.settings.tracing:
            silence_contrib(stack)
    except Exception as exc:  # noqa: BLE001 - the app works with more spans too
        observability.internal_errors("contrib", exc)
    return stack


def _warn_shadowed_route(app: Starlette, settings: ObserveSettings) -> None:
    """Log a warning if a route of the app has the path of the metrics, or one at or below that of the console."""
    paths = [endpoint.template for endpoint in list_endpoints(app) if not endpoint.websocket]
    shadowed: list[tuple[str, str, str]] = []
    if settings.metrics and settings.metrics_port is None and has_own_route(app, settings.metrics_path):
        shadowed.append((settings.metrics_path, "metrics", "metrics_path"))
    if settings.serves_console:
        below = settings.console_path + "/"
        own = next((path for path in paths if f"{path}/".startswith(below)), None)
        if own is not None:
            shadowed.append((own, "the development console", "console_path"))
    for path, what, option in shadowed:
        logging.getLogger("fastapi_observe").warning(
            "The route %s of this app is unreachable because fastapi-observe serves %s at that path. Set "
            "%s to another path or remove the route.",
            path,
            what,
            option,
        )
