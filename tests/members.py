"""Workers of one server, made in the test process: one is live, the others have ended as by `kill -9`."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.workers.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def items_app() -> FastAPI:
    """Make an app with one route."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    return app


NAME = "0-1-1"
"""Name of the directory. No process has this pid and start time, so the last worker to leave removes it."""


class Member:
    """The metrics of one worker process."""

    def __init__(self, root: Path, scope: str = "0", **settings: Any) -> None:
        self.internal_errors = InternalErrors()
        made = ObserveSettings(**{"include_default_registry": False, **settings})
        self.metrics = MetricsService(made, self.internal_errors)
        self.worker = Worker(root / NAME, self.internal_errors)
        self.ended = False
        self.metrics.sharing.share(self.worker, scope)

    def text(self, accept: str = "") -> str:
        """Scrape this worker."""
        headers, body = self.metrics.render(accept, "")
        return (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()

    def samples(self) -> Samples:
        """Scrape this worker. Returns samples by name and sorted labels."""
        found: Samples = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def die(self) -> None:
        """Leave what `kill -9` leaves: files without a lock on them."""
        self.ended = True
        self.metrics.sharing.unshare()
        self.worker.stop_listening()
        self.worker.close()

    def leave(self) -> None:
        """End as a worker does that is stopped."""
        self.ended = True
        self.metrics.sharing.unshare()
        self.worker.leave()
