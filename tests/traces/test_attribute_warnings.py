"""A client that sends what OpenTelemetry warns about does not fill the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from opentelemetry import trace
from starlette.testclient import TestClient

from fastapi_observe.traces import attribute_warnings
from fastapi_observe.traces.attribute_warnings import LOGGER, MAX_TEXTS, LogThrottle, throttle_attribute_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from conftest import Seen


def _record(text: str, *values: Any) -> logging.LogRecord:
    return logging.LogRecord(LOGGER, logging.WARNING, "", 1, text, values, None)


def test_a_client_cannot_fill_the_log(observed: Callable[..., Seen], caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that puts what it was sent on its span: one line for each text, however many requests there are."""
    app = FastAPI()

    @app.get("/")
    async def page(request: Request) -> str:
        trace.get_current_span().set_attribute("shop.query", request.url.query)
        trace.get_current_span().set_attribute("shop.nonsense", object())  # type: ignore[arg-type]
        return "page"

    seen = observed(app, capture_logging=False)
    with caplog.at_level(logging.WARNING, LOGGER):
        client = TestClient(app)
        for _ in range(50):
            assert client.get("/", params={"q": "x" * 5000}).status_code == 200
    texts = [record.msg for record in caplog.records if record.name.startswith("opentelemetry")]
    assert len(texts) == len(set(texts))
    assert len(texts) <= 2
    assert len(str((seen.server_spans[0].attributes or {})["shop.query"])) == 2048


def test_what_was_kept_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute the text is told again, with how often it was not; values do not make texts different."""
    now = 1000.0
    monkeypatch.setattr(attribute_warnings, "monotonic", lambda: now)
    bound = LogThrottle()
    assert [bound.filter(_record("cut at %d", at)) for at in range(4)] == [True, False, False, False]
    assert bound.filter(_record("other"))
    now += 60
    later = _record("cut at %d", 7)
    assert bound.filter(later)
    assert later.getMessage() == "cut at 7 (3 more since this was last told)"
    now += 60
    assert bound.filter(last := _record("cut at %d", 8))
    assert last.getMessage() == "cut at 8"


def test_texts_are_bounded() -> None:
    """Whatever is logged under that name, only so many texts are remembered."""
    bound = LogThrottle()
    for number in range(3 * MAX_TEXTS):
        assert bound.filter(_record(f"text {number}"))
    assert len(bound._told) <= MAX_TEXTS


def test_it_ends_with_the_last_install() -> None:
    """Two installs share it; each ends its use once."""
    logger = logging.getLogger(LOGGER)
    before = [*logger.filters]
    first, second = throttle_attribute_warnings(), throttle_attribute_warnings()
    first()
    first()
    assert sum(isinstance(one, LogThrottle) for one in logger.filters) == 1
    second()
    assert logger.filters == before
