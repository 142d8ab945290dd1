"""Several worker processes of real servers: any of them serves the sum, also after kills.

By default two servers are used. `OBSERVE_ALL_FAULTS=1` (CI) and `OBSERVE_SOAK=1` use all; the latter kills more.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import subprocess
import threading
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Final

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from servers_of_workers import COMMANDS, WORKERS, Server, serving_workers
from tools import needs, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, Self

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="workers do not share metrics here")

SOAK = "OBSERVE_SOAK" in os.environ
ALL_SERVERS = SOAK or "OBSERVE_ALL_FAULTS" in os.environ
NEEDS = {
    "uvicorn": ("uvicorn",),
    "hypercorn": ("hypercorn",),
    "granian": ("granian",),
    "granian, spawned": ("granian",),
}


KILLED = ["gunicorn --preload", *(["uvicorn"] if ALL_SERVERS else []), *(["granian"] if SOAK else [])]
"""The servers whose workers are killed. Those that `gunicorn --preload` forks start in no time."""

GRANIAN_GIVES_UP: Final = 8.0
"""Seconds, and some more, within which another end of the same worker ends granian."""


def skip_unless_installed(name: str) -> None:
    """Skip the test if the server is not installed."""
    for module in NEEDS.get(name, ("gunicorn", "uvicorn_worker")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def uvicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server with three workers for tests that only scrape it."""
    with serving_workers("uvicorn", tmp_path_factory.mktemp("uvicorn")) as server:
        server.spread(3)
        yield server


@pytest.mark.parametrize("name", COMMANDS if ALL_SERVERS else ["uvicorn", "gunicorn --preload"])
def test_any_worker_serves_the_sum(name: str, tmp_path: Path) -> None:
    """The sum of three workers is exact, whichever serves the scrape. In the end only the archive is left."""
    skip_unless_installed(name)
    with serving_workers(name, tmp_path) as server:
        sent = server.spread(3)
        for _ in range(8):
            samples = server.samples()
            (requests,) = samples["http_requests_total"].values()
            assert requests == sent
            assert samples["user_before_total"] == {(("kind", "early"),): sent}
            assert samples["user_after_total"] == {(): sent}
            assert samples["user_seconds_bucket"][("le", "0.25"),] == sent
            assert samples["user_seconds_bucket"][("le", "0.1"),] == 0
            assert samples["user_seconds_count"] == {(): sent}
            assert sum(samples["late_total"].values()) == sent
            assert samples["level"] == {(): 3}
            assert samples["user_gauge"] == {(): 3}
            assert len(samples["user_each"]) == 3
            assert samples["http_requests_in_progress"] == {(): 0}
            assert len(samples["process_resident_memory_bytes"]) == 3
            assert len({dict(labels)["pid"] for labels in samples["python_gc_collections_total"]}) == 3
            assert len(samples["asyncio_tasks"]) == 3
            assert len(samples["memory_usage_bytes"]) == 1
            assert samples["fastapi_observe_workers"] == {(): 3}
            assert samples["fastapi_observe_metrics_degraded"] == {(): 0}
    assert {path.name for path in tmp_path.glob("fastapi-observe-*/*/*")} <= {"archive", "lock"}


class Load:
    """Threads that send requests, each on a new connection, and count responses and errors."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopped = False
        self.received = [0] * 6
        self.failed = [0] * 6
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]

    def _run(self, number: int) -> None:
        while not self._stopped:
            try:
                status, _ = self._server.get("/count/1")
                assert status == 200
                self.received[number] += 1
            except (OSError, http.client.HTTPException):
                self.failed[number] += 1
                sleep(0.01)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_worker_loses_no_count(name: str, tmp_path: Path) -> None:
    """Under load, totals never go back, and differ from the responses by requests that a kill has cut off."""
    skip_unless_installed(name)
    kills = 20 if SOAK else 3
    with serving_workers(name, tmp_path) as server:
        with Load(server) as load:
            shown = 0.0
            for kill in range(kills):
                before = sum(load.received)
                until(lambda before=before: sum(load.received) > before + 30)  # type: ignore[misc]
                worker = oldest_worker(tmp_path)
                if name == "granian" and kill >= WORKERS:
                    until(lambda worker=worker: time() > worker.create_time() + GRANIAN_GIVES_UP)  # type: ignore[misc]
                worker.kill()
                for _ in range(5):
                    now = scrape_requests(server)
                    assert now >= shown
                    shown = now
                until(
                    lambda: len(list(tmp_path.glob("fastapi-observe-*/*/*.lock"))) >= 3 or scrape_requests(server) < 0
                )
        total = server.total("http_requests_total")
        # Cut off by a kill: answered and not counted yet, or counted and not answered; at most one a connection.
        assert abs(total - sum(load.received)) <= 6 * kills
        assert total >= sum(load.received) - kills
        (directory,) = tmp_path.glob("fastapi-observe-*/*")
        server.total("http_requests_total")
        assert len(list(directory.glob("*.index"))) <= 3
        assert sum(path.stat().st_size for path in directory.iterdir()) < 1_000_000


def oldest_worker(directory: Path) -> psutil.Process:
    """Return the worker that has run the longest."""
    pids = {int(path.name.split("-")[0]) for path in directory.glob("fastapi-observe-*/*/*.lock")}
    alive = [each for each in psutil.process_iter(["status", "create_time"]) if each.pid in pids]
    return min(
        (each for each in alive if each.info["status"] != psutil.STATUS_ZOMBIE),
        key=lambda each: each.info["create_time"],
    )


def scrape_requests(server: Server) -> float:
    """Scrape until it succeeds: a connection may have been given to the worker that was killed."""
    deadline = monotonic() + 60
    while True:
        try:
            return server.total("http_requests_total")
        except (OSError, http.client.HTTPException):
            assert monotonic() < deadline, "the server has ended"
            sleep(0.01)


def scrape_openmetrics(server: Server) -> tuple[str, dict[str, Any]]:
    """Scrape as OpenMetrics. Returns the text and its families by name."""
    text = server.get("/metrics", accept="application/openmetrics-text")[1].decode()
    return text, {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]


def test_exemplars_of_all_workers(uvicorn: Server) -> None:
    """OpenMetrics has the latest exemplar of each bucket, whichever worker it is from."""
    seen = set()
    for _ in range(6):
        _, families = scrape_openmetrics(uvicorn)
        (sample,) = [one for one in families["http_requests"].samples if one.name == "http_requests_total"]
        assert sample.exemplar is not None
        seen.add(sample.exemplar.labels["trace_id"])
        samples = families["http_request_duration_seconds"].samples
        assert any(one.exemplar for one in samples if one.name.endswith("_bucket"))
    assert len(seen) == 1


def test_the_sum_is_well_formed(uvicorn: Server) -> None:
    """`promtool check metrics` accepts the sum of three workers. As OpenMetrics it has units and `# EOF`."""
    promtool = needs("promtool")
    text = uvicorn.get("/metrics")[1].replace(b"user_gauge", b"user_level")  # promtool wants no type in a name
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)  # noqa: S603 - promtool's own path
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    openmetrics, families = scrape_openmetrics(uvicorn)
    assert openmetrics.endswith("\n# EOF\n")
    assert families["user_parcel_bytes"].unit == "bytes"
    sent = uvicorn.total("http_requests_total")
    assert [sample.value for sample in families["user_parcel_bytes"].samples] == [sent, 7 * sent]


def test_many_scrapes_at_once(uvicorn: Server) -> None:
    """Fifty scrapes at once are all served, and requests meanwhile too."""
    before = uvicorn.total("http_requests_total")
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(uvicorn.get("/metrics")[0])) for _ in range(50)]
    for thread in threads:
        thread.start()
    uvicorn.count(10)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 50
    assert uvicorn.total("http_requests_total") == before + 10


def test_the_directory_of_prometheus_client(tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR set, prometheus_client's metrics are in its own files, and in the same scrape."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with serving_workers("uvicorn", tmp_path, PROMETHEUS_MULTIPROC_DIR=str(theirs)) as server:
        sent = server.spread(3)
        samples = server.samples()
        assert sum(samples["http_requests_total"].values()) == sent
        assert samples["user_before_total"] == {(("kind", "early"),): sent}
        assert samples["user_after_total"] == {(): sent}
        assert samples["user_gauge"] == {(): 3}
        assert list(theirs.glob("*.db"))
        assert len(samples["process_resident_memory_bytes"]) == 3
