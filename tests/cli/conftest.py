"""What the tests of the command line share."""

from __future__ import annotations

import pytest

from fastapi_observe.doctor import probe
from fastapi_observe.slo import http_get


@pytest.fixture(autouse=True)
def _generous_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine take its time: only tests of the timeouts wait for one, and set it."""
    monkeypatch.setattr(probe, "RESPONSE_TIMEOUT", 120.0)
    monkeypatch.setattr(http_get, "READ_TIMEOUT", 120.0)
    monkeypatch.setattr(http_get, "TOTAL_TIMEOUT", 120.0)
