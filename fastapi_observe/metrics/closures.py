"""Functions of prometheus-fastapi-instrumentator (`instrumentator_functions`), called for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi_observe.records.request import RequestRecord


def make_info(record: RequestRecord) -> Any:
    """Return a request as the instrumentator's `Info`, which its functions take."""
    # Imported here, since only apps with such functions need the instrumentator and Starlette's classes.
    from prometheus_fastapi_instrumentator.metrics import Info  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import Response  # noqa: PLC0415

    response = Response(status_code=record.status_code)
    response.raw_headers = [(name.lower(), value) for name, value in record.response_headers]
    return Info(
        request=Request(record.scope),
        response=response,
        method=record.method,
        modified_handler=record.endpoint,
        modified_status=str(record.status_code),
        modified_duration=record.duration,
        modified_duration_without_streaming=record.duration if record.ttfb is None else record.ttfb,
    )
