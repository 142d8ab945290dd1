"""Names of Starlette that are not documented, with a fallback for each."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from starlette import routing
from starlette.middleware import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.applications import Starlette
    from starlette.types import ASGIApp

OPENTELEMETRY_SCOPE_KEY: Final = "starlette.opentelemetry"
"""Scope key that keeps Starlette's own telemetry from measuring a request that is measured already."""

_BUILDER: Final = "build_middleware_stack"
_PARAMETER: Final = re.compile(r"\{\w+(:\w+)?\}")


def replace_stack_builder(
    app: Starlette,
    wrap: Callable[[Callable[[], ASGIApp]], Callable[[], ASGIApp]],
    middleware: Callable[[ASGIApp], ASGIApp] | None,
) -> Callable[[], None]:
    """Replace the function that builds the app's middleware stack by `wrap(original)`. Returns a function that reverts.

    The stack is built at the first request, so that middleware added until then is inside. If the app has no such
    function, `middleware` is added as the app's outermost middleware, inside Starlette's own error handling.
    """
    app.middleware_stack = None
    original = getattr(app, _BUILDER, None)
    if original is None:
        return _add_middleware(app, middleware)
    inherited = _BUILDER not in vars(app)
    setattr(app, _BUILDER, wrap(original))

    def undo() -> None:
        if inherited:
            delattr(app, _BUILDER)
        else:
            setattr(app, _BUILDER, original)
        app.middleware_stack = None

    return undo


def is_builder(app: Starlette, build: Callable[[], ASGIApp]) -> bool:
    """Return whether `build` is the function that the app calls to build its middleware stack."""
    return getattr(app, _BUILDER, build) is build


def _add_middleware(app: Starlette, middleware: Callable[[ASGIApp], ASGIApp] | None) -> Callable[[], None]:
    if middleware is None:
        return lambda: None
    entry = Middleware(middleware)
    app.user_middleware.insert(0, entry)

    def undo() -> None:
        app.user_middleware.remove(entry)
        app.middleware_stack = None

    return undo


@contextmanager
def stack_parts(app: Starlette, middleware: list[Middleware], handlers: dict[Any, Any]) -> Iterator[None]:
    """Build the stack inside this block with other middleware and exception handlers than the app's own lists."""
    before = app.user_middleware, app.exception_handlers
    app.user_middleware, app.exception_handlers = middleware, handlers
    try:
        yield
    finally:
        app.user_middleware, app.exception_handlers = before


def compile_template(template: str) -> re.Pattern[str]:
    """Return a pattern that matches the paths of a route template."""
    compile_path = getattr(routing, "compile_path", None)
    if compile_path is not None:
        pattern: re.Pattern[str] = compile_path(template)[0]
        return pattern
    parts, at = ["^"], 0
    for match in _PARAMETER.finditer(template):
        parts += (re.escape(template[at : match.start()]), ".*" if match[1] == ":path" else "[^/]+")
        at = match.end()
    return re.compile("".join([*parts, re.escape(template[at:]), "$"]))
