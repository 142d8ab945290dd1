"""Real servers with collectors that fail, ended in every way: the app responds as without install.

`OBSERVE_CHAOS=1` (`make chaos`) or `OBSERVE_SOAK=1` runs every combination, else a few that hold each part once.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import tempfile
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import psutil
import pytest
from chaos_app import PLANNED
from chaos_requests import Answer, ask_at_once, ask_everything
from collectors import ACCEPTING, Collector, Mode
from servers_of_workers import SERVERS, Crew, crew
from tools import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these signals")

MODES: Final = ("ok", "refused", "hang", "drip", "503", "302", "huge", "reset")
ENDS: Final = ("SIGTERM", "SIGINT", "SIGKILL")
FEW: Final = (
    ("uvicorn", "hang", "SIGINT"),
    ("uvicorn", "503", "SIGKILL"),
    ("uvicorn --workers", "refused", "SIGTERM"),
    ("gunicorn", "302", "SIGKILL"),
    ("gunicorn", "ok", "SIGINT"),
    ("gunicorn --preload", "drip", "SIGTERM"),
    ("hypercorn", "reset", "SIGINT"),
    ("granian", "huge", "SIGKILL"),
)
"""Each server, each collector and each end at least once."""

WHOLE: Final = bool({"OBSERVE_CHAOS", "OBSERVE_SOAK"} & {*os.environ})
CELLS: Final = tuple(itertools.product(SERVERS, MODES, ENDS)) if WHOLE else FEW

LATER: Final = 2.5 if WHOLE else 25.0
"""Seconds that a server may end later with us than without us: what docs/how-to/servers.md states, or ten times it."""

LONGEST: Final = 60.0
"""Seconds until something is taken to hang."""

_until = functools.partial(until, seconds=LONGEST)

GROWTH: Final = 64 * 1024 * 1024
"""Bytes that a worker's peak may grow by: its first requests load a part of that; the answer of `huge` is 300 MB."""

SETTINGS: Final = {
    "OBSERVE_SAMPLER": "always_on",
    "OBSERVE_BATCH_DELAY": "0.1",
    "OBSERVE_OTLP_LOGS": "true",
    "OBSERVE_OTLP_METRICS": "true",
    "OBSERVE_SHUTDOWN_TIMEOUT": "2" if WHOLE else "1",  # with less time to flush, a busy machine has more to spare
}
"""Everything that is sent is sent, soon."""


class Bare(NamedTuple):
    """What a server does without us: its responses, the seconds that it takes to end, and what it returns then."""

    answers: dict[str, bytes]
    seconds: float
    code: int


@functools.cache
def bare(name: str, end: str) -> Bare:
    """Run a server without us, under the same load."""
    with tempfile.TemporaryDirectory() as directory, crew(name, Path(directory), observed=False) as server:
        answers = {kind: answer.wire for kind, answer in ask_everything(server.port).items()}
        ask_at_once(server.port, 2)
        ask_everything(server.port)
        seconds = _end(server, end)
        return Bare(answers, seconds, server.process.returncode)


def _end(server: Crew, end: str) -> float:
    """Have a server end as an orchestrator, or Ctrl-C at a terminal, does; return the seconds until all of it has."""
    if end != "SIGINT":
        server.process.terminate()
    elif server.name == "granian":
        # With us or without, a worker that gets SIGINT of the terminal and SIGTERM of its server at once may hang,
        # in granian's own signal handler.
        server.process.send_signal(signal.SIGINT)
    else:
        os.killpg(server.process.pid, signal.SIGINT)
    return server.ended(LONGEST)


class Cell:
    """One observed run: what it was asked, and what is known of that."""

    def __init__(self, server: Crew, expected: dict[str, bytes]) -> None:
        self.server = server
        self.requests = self.connections = 0
        self.ids: list[str] = []
        self._expected = expected

    def ask(self) -> None:
        """Send each request several times; every response is that of the bare app."""
        for answers in [ask_everything(self.server.port), *ask_at_once(self.server.port, 2)]:
            self.take(answers)

    def take(self, answers: dict[str, Answer]) -> None:
        """Compare answers with those of the bare app."""
        for kind, answer in answers.items():
            assert answer.wire == self._expected[kind], kind
        # Granian sends none of our headers with what opens a WebSocket connection.
        self.ids += [answer.request_id for kind, answer in answers.items() if answer.request_id or kind != "websocket"]
        self.requests += len(answers) - 1
        self.connections += 1

    def scrape(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Scrape: every request is counted, and everything that was to be exported is somewhere."""
        samples = self.server.samples()
        assert sum(samples["http_requests_total"].values()) == self.requests + self.server.answered
        assert sum(samples["websocket_connection_duration_seconds_count"].values()) == self.connections
        assert samples.get("fastapi_observe_internal_errors_total", {}) == {}
        return samples

    def produced(self) -> float:
        """Scrape until every worker has reported all its spans, and return how many that are.

        In each scrape: produced = exported + dropped + queued for every signal. A worker that does not answer a scrape
        at once is shown as it was before.
        """
        spans = self.requests + self.connections + self.server.answered
        shown: dict[str, float] = {}
        deadline = monotonic() + LONGEST
        while shown.get("traces") != spans:
            assert monotonic() < deadline, shown
            samples = self.scrape()
            shown = _by_signal(samples, "produced_total")
            assert {*shown} == {"logs", "traces", "otlp_logs", "otlp_metrics"}
            parts = [_by_signal(samples, name) for name in ("exported_total", "dropped_total", "queue_items")]
            assert shown == {name: sum(part.get(name, 0) for part in parts) for name in shown}
        return spans


def _by_signal(samples: dict[str, dict[tuple[tuple[str, str], ...], float]], name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in samples.get(f"fastapi_observe_{name}", {}).items():
        signal_name = dict(labels)["signal"]
        found[signal_name] = found.get(signal_name, 0) + value
    return found


def _memory(pid: int, of: str) -> int:
    """Return the bytes that a process has in memory (`VmRSS`), or has had at most (`VmHWM`)."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return int(psutil.Process(pid).memory_info().rss)
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(of)]
    return int(line.split()[1]) * 1024


@pytest.fixture
def collector(mode: str) -> Iterator[Collector]:
    """Run a collector that misbehaves."""
    refused = mode == "refused"
    with Collector("ok" if refused else cast("Mode", mode), listens=not refused) as made:
        made.retry_after = "2"
        yield made


@pytest.mark.parametrize(("name", "mode", "end"), CELLS)
def test_chaos(name: str, mode: str, end: str, collector: Collector, tmp_path: Path) -> None:
    """Answers are those of the bare app, everything is accounted for, and the end comes in time and leaves nothing."""
    expected = bare(name, "SIGTERM" if end == "SIGKILL" else end)
    with crew(name, tmp_path, observed=True, OBSERVE_OTLP_ENDPOINT=collector.url, **SETTINGS) as server:
        memory = {pid: _memory(pid, "VmRSS") for pid in server.pids}
        cell = Cell(server, expected.answers)
        cell.ask()
        _until(lambda: collector.connections if mode != "refused" else _has_failed(server))
        cell.ask()
        spans = cell.produced()
        assert [pid for pid in memory if _memory(pid, "VmHWM") - memory[pid] > GROWTH] == []
        if end != "SIGKILL":
            assert _end(server, end) < expected.seconds + LATER
            _ended_cleanly(server, expected)
            if mode in ACCEPTING:
                _every_span_is_there(collector, cell, spans)
            return
        _kill_one(cell)
        _kill_all(server)
    with crew(name, tmp_path, observed=True, OBSERVE_OTLP_ENDPOINT=collector.url, **SETTINGS) as server:
        cell = Cell(server, expected.answers)
        cell.ask()
        cell.produced()
        assert _end(server, "SIGTERM") < expected.seconds + LATER
        _ended_cleanly(server, expected)


def _has_failed(server: Crew) -> bool:
    return server.total("fastapi_observe_export_failures_total") > 0


def _ended_cleanly(server: Crew, expected: Bare) -> None:
    """Nothing was raised but what was planned, the server says the same as without us, and at most a sum is left.

    The sum is for a next worker of the same server; the next server removes it.
    """
    assert server.process.returncode == expected.code
    for text in server.errors.split("Traceback")[1:]:
        assert PLANNED in text
    left = [*server.directory.glob("fastapi-observe-*/*")]
    assert all(f"-{server.process.pid}-" in one.name for one in left)
    if server.name != "hypercorn":  # it kills its other workers as soon as the first one has ended
        assert {path.name for one in left for path in one.iterdir()} <= {"archive", "lock"}


def _every_span_is_there(collector: Collector, cell: Cell, spans: float) -> None:
    """Check that the collector has every span once, those of the requests among them."""
    ids = [span.span_id for span in collector.spans]
    assert len(ids) == len({*ids}) == spans
    assert {*cell.ids} <= {span.trace_id.hex() for span in collector.spans}


def _kill_one(cell: Cell) -> None:
    """Kill a worker: the others go on, and nothing that was counted is lost."""
    server = cell.server
    pid = min(server.pids)
    victim = psutil.Process(pid)
    victim.kill()
    _until(lambda: not _lives(victim))
    if server.workers == 1:
        return
    if server.name == "hypercorn":  # it ends when a worker dies
        server.ended(LONGEST)
        return
    for _ in range(5):
        _until(lambda: _scraped(cell))
    server.meet()
    assert pid not in server.pids
    cell.ask()
    cell.scrape()


def _scraped(cell: Cell) -> bool:
    """Scrape; False where the connection was given to the worker that was killed."""
    try:
        cell.scrape()
    except (OSError, HTTPException):
        return False
    return True


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _kill_all(server: Crew) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.ended(LONGEST)
