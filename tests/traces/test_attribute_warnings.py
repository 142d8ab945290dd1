"""OpenTelemetry's warnings about attributes are throttled, so that a client cannot fill the log with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from opentelemetry import trace
from starlette.testclient import TestClient

from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.traces.attribute_warnings import ATTRIBUTES_LOGGER, ThrottleFilter, throttle_attribute_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from conftest import Seen


def log_record(message: str, *values: Any) -> logging.LogRecord:
    """Return a log record of OpenTelemetry's logger."""
    return logging.LogRecord(ATTRIBUTES_LOGGER, logging.WARNING, "", 1, message, values, None)


def test_a_client_cannot_fill_the_log(observed: Callable[..., Seen], caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that sets what it received as attributes: one line for each message, however many requests."""
    app = FastAPI()

    @app.get("/")
    async def page(request: Request) -> str:
        trace.get_current_span().set_attribute("shop.query", request.url.query)
        trace.get_current_span().set_attribute("shop.nonsense", object())  # type: ignore[arg-type]
        return "page"

    seen = observed(app, capture_logging=False)
    with caplog.at_level(logging.WARNING, ATTRIBUTES_LOGGER):
        client = TestClient(app)
        for _ in range(50):
            assert client.get("/", params={"q": "x" * 5000}).status_code == 200
    messages = [record.msg for record in caplog.records if record.name.startswith("opentelemetry")]
    assert len(messages) == len(set(messages))
    assert len(messages) <= 2
    assert len(str((seen.server_spans[0].attributes or {})["shop.query"])) == 2048


def test_suppressed_messages_are_counted() -> None:
    """After a minute a message is logged again with the number suppressed; its arguments do not matter."""
    now = 1000.0
    throttle = ThrottleFilter(LogThrottle(clock=lambda: now))
    assert [throttle.filter(log_record("cut at %d", at)) for at in range(4)] == [True, False, False, False]
    assert throttle.filter(log_record("other"))
    now += 60
    later = log_record("cut at %d", 7)
    assert throttle.filter(later)
    assert later.getMessage() == "cut at 7 (3 more in the last minutes)"
    now += 60
    assert throttle.filter(last := log_record("cut at %d", 8))
    assert last.getMessage() == "cut at 8"


def test_the_last_install_removes_the_filter() -> None:
    """Two installs share one filter, and each releases it once."""
    logger = logging.getLogger(ATTRIBUTES_LOGGER)
    before = [*logger.filters]
    first, second = throttle_attribute_warnings(), throttle_attribute_warnings()
    first()
    first()
    assert sum(isinstance(one, ThrottleFilter) for one in logger.filters) == 1
    second()
    assert logger.filters == before
