"""Workers that a server replaces: the totals continue while the supervisor runs."""

from __future__ import annotations

import http.client
import importlib.util
import os
from time import sleep
from typing import TYPE_CHECKING

import pytest
from servers_of_workers import serving_workers
from tools import volume

from fastapi_observe.workers.directory import remove_stale_directories

if TYPE_CHECKING:
    from pathlib import Path

    from servers_of_workers import Server

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="workers do not share metrics here")

SOAK = "OBSERVE_SOAK" in os.environ

RECYCLED = {
    "gunicorn": {"GUNICORN_CMD_ARGS": "--max-requests 50"},
    "gunicorn --preload": {"GUNICORN_CMD_ARGS": "--max-requests 50"},
    "uvicorn": {"UVICORN_LIMIT_MAX_REQUESTS": "50"},
}
"""Variables that make each server replace a worker after 50 requests."""


CASES = [(name, workers) for name in RECYCLED for workers in (1, 2) if (name, workers) != ("uvicorn", 1)]
"""uvicorn with one worker replaces nothing: it ends."""


@pytest.mark.parametrize(("name", "workers"), CASES if SOAK else [("gunicorn --preload", 1), ("uvicorn", 2)])
def test_totals_survive_the_last_worker(name: str, workers: int, tmp_path: Path) -> None:
    """Totals never go back and are the number of responses, also if the only worker is replaced."""
    if name.startswith("gunicorn") and not importlib.util.find_spec("uvicorn_worker"):
        pytest.skip("uvicorn_worker is not installed")
    pids: set[int] = set()
    answered, shown = 0, 0.0
    with serving_workers(name, tmp_path, workers, **RECYCLED[name]) as server:
        while len(pids) < workers + volume(3):
            for _ in range(10):
                answered += count_one(server, pids)
            now = scrape_total(server, "http_requests_total")
            assert shown <= now
            shown = now
        total = scrape_total(server, "http_requests_total")
        assert total >= answered
        assert total - answered <= len(pids) * 2  # answered, and the connection was cut off
        assert scrape_total(server, "user_before_total") == scrape_total(server, "user_after_total") == total
        while scrape_total(server, "fastapi_observe_workers") < workers:  # a starting one may lose a signal
            sleep(0.02)
    (directory,) = tmp_path.glob("fastapi-observe-*/*")
    assert {path.name for path in directory.iterdir()} <= {"archive", "lock"}
    remove_stale_directories(directory.parent, "")  # as the next server does when it starts
    assert not directory.exists()


def count_one(server: Server, pids: set[int]) -> bool:
    """Send a request. Returns False if its connection was in the backlog of a worker that ended."""
    try:
        pids.update(server.count(1))
    except (OSError, http.client.HTTPException):
        return False
    return True


def scrape_total(server: Server, name: str) -> float:
    """Scrape until it succeeds. Returns the sum of one series name."""
    while True:
        try:
            return server.total(name)
        except (OSError, http.client.HTTPException):
            continue
