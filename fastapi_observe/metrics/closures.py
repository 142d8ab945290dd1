"""Closures of prometheus-fastapi-instrumentator: what they are given."""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi_observe.records.request import RequestRecord


def check_functions(closures: Sequence[Any]) -> tuple[Callable[[Any], None], ...]:
    """Return the closures without None, which the instrumentator's factories give for a metric that exists already."""
    for closure in closures:
        if iscoroutinefunction(closure):
            raise ValueError(
                f"instrumentation {closure!r} is a coroutine function: the samples of a request are taken "
                "at once, so give a plain function"
            )
    return tuple(closure for closure in closures if closure is not None)


def make_info(ex: RequestRecord) -> Any:
    """Return a request as prometheus_fastapi_instrumentator's closures expect it."""
    from prometheus_fastapi_instrumentator.metrics import Info  # noqa: PLC0415 - only who uses closures pays for it
    from starlette.requests import Request  # noqa: PLC0415 - as above
    from starlette.responses import Response  # noqa: PLC0415 - as above

    response = Response(status_code=ex.status_code)
    response.raw_headers = [(name.lower(), value) for name, value in ex.response_headers]
    return Info(
        request=Request(ex.scope),
        response=response,
        method=ex.method,
        modified_handler=ex.endpoint,
        modified_status=str(ex.status_code),
        modified_duration=ex.duration,
        modified_duration_without_streaming=ex.duration if ex.ttfb is None else ex.ttfb,
    )
