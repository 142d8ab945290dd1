"""Holds the table "What survives what" of the docs: no signal loses more than stated at any event."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from prometheus_client.parser import text_string_to_metric_families
from servers_of_workers import free_port
from tools import remove_tree, tmpfs, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="Linux")

ROOT = Path(__file__).parents[2]
APP = """
import asyncio
import os
import time

JUMP = [0.0]
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + JUMP[0]
time.time_ns = lambda: now_ns() + int(JUMP[0] * 1e9)

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_observe import LogDep, install

app = FastAPI()
install(app, sampler="always_on", exclude_paths=("/quiet/*",))


@app.get("/x/{number}")
async def x(number: int) -> int:
    return os.getpid()


@app.get("/wrong/{number}")
async def wrong(number: int, log: LogDep) -> int:
    log.error("it is wrong", number=number)
    return os.getpid()


@app.get("/quiet/wait/{seconds}")
async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@app.get("/quiet/endless")
async def endless() -> StreamingResponse:
    async def parts():
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    return StreamingResponse(parts())


@app.get("/quiet/jump/{seconds}")
async def jump(seconds: float) -> float:
    JUMP[0] = seconds
    return seconds
"""


class Served:
    """The app behind uvicorn, its standard output, and the items that its collector has received."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, collector: Collector, *, reads: bool) -> None:
        self.process = process
        self.port = port
        self.collector = collector
        self._output: list[bytes] = []
        self._reader = threading.Thread(target=self._read if reads else process.poll)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)

    def get(self, path: str) -> bytes:
        """Send a request on a new connection. The response must be 200."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read()
        finally:
            connection.close()

    def send(self, numbers: range) -> list[int]:
        """Send numbered requests. Returns the process ids that responded."""
        return [int(self.get(f"/x/{number}")) for number in numbers]

    def samples(self) -> dict[str, float]:
        """Scrape and return sums by sample name."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").decode()):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    def counted(self) -> float:
        """Scrape and return the number of counted requests."""
        return self.samples()["http_requests_total"]

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines on standard output, parsed as JSON."""
        return [json.loads(line) for line in self._output]

    def logged(self) -> list[int]:
        """Return the numbers of the requests that have a line."""
        urls = [line["fields"]["url"] for line in self.lines() if line["logger"] == "fastapi_observe.request"]
        return sorted(int(url.rpartition("/")[2]) for url in urls)

    def traced(self) -> list[int]:
        """Return the numbers of the requests whose span the collector has."""
        paths = [pair.value.string_value for span in self.collector.spans for pair in span.attributes
                 if pair.key == "url.path"]  # fmt: skip
        return sorted(int(path.rpartition("/")[2]) for path in paths)

    def stop(self) -> int:
        """Send SIGTERM and wait for the end."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """Wait for the end and for all output."""
        self._reader.join(20)
        return self.process.wait(20)


LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Run a program that cannot write to files, as on a full disk, but to pipes and sockets."""


@contextmanager
def served(
    directory: Path, *options: str, listens: bool = True, reads: bool = True, limited: bool = False, **environment: str
) -> Iterator[Served]:
    """Serve the app with uvicorn during the block. With `reads=False` its standard output is not read."""
    (directory / "surviving.py").write_text(APP)
    port = free_port()
    variables = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OBSERVE_MULTIPROCESS_DIRECTORY": str(directory),
        **environment,
    }
    command = [sys.executable, "-m", "uvicorn", "surviving:app", "--port", str(port), "--log-level", "error", *options]
    if limited:
        command = [sys.executable, "-c", LIMITED, *command]
    with Collector(listens=listens) as collector:
        variables["OBSERVE_OTLP_ENDPOINT"] = collector.url
        process = subprocess.Popen(  # noqa: S603 - our own words
            command, env=variables, cwd=directory, stdout=subprocess.PIPE, start_new_session=True
        )
        server = Served(process, port, collector, reads=reads)
        try:
            until(lambda: _answers(server))
            yield server
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            server.ended()
            assert process.stdout is not None
            process.stdout.close()


def _answers(server: Served) -> bool:
    assert server.process.poll() is None
    with suppress(OSError, HTTPException):
        return bool(server.get("/metrics"))
    return False


SENT = range(40)
ALL = list(SENT)


def test_sigterm(tmp_path: Path) -> None:
    """With a working collector every request is counted, has a line, and its span arrives."""
    with served(tmp_path) as server:
        server.send(SENT)
        assert server.counted() == 40
        server.stop()
        assert server.logged() == ALL
        assert server.traced() == ALL


def test_a_second_interrupt(tmp_path: Path) -> None:
    """A response that does not end delays uvicorn; a second Ctrl-C ends that, and queued items are flushed."""
    with served(tmp_path, OBSERVE_BATCH_DELAY="60") as server:
        server.send(SENT)
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/quiet/endless")
        assert connection.getresponse().read(1) == b"x"
        server.process.send_signal(signal.SIGINT)
        until(lambda: not _listens(server))
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        server.ended()
        connection.close()
        assert server.logged() == ALL
        assert server.traced() == ALL


def _listens(server: Served) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
        return True
    return False


@pytest.mark.parametrize("mode", ["refused", "hang"])
def test_sigterm_without_a_collector(mode: str, tmp_path: Path) -> None:
    """Every request is counted and has a line, although spans cannot be sent."""
    with served(tmp_path, listens=mode != "refused", OBSERVE_SHUTDOWN_TIMEOUT="0.5") as server:
        server.collector.mode = "hang"
        server.send(SENT)
        assert server.counted() == 40
        server.stop()
        assert server.logged() == ALL
        assert server.traced() == []


def test_kill(tmp_path: Path) -> None:
    """Killed without a warning: lines and spans of a second before have gone by themselves.

    The second passes in the server: on a busy machine it comes later for everything that the server does.
    """
    with served(tmp_path, OBSERVE_BATCH_DELAY="0.1") as server:
        server.send(SENT)
        server.get("/quiet/wait/1")
        server.process.kill()
        server.ended()
        assert server.logged() == ALL
        until(lambda: server.traced() == ALL)  # what had been sent may still be on its way into our own memory


def test_kill_amid_requests(tmp_path: Path) -> None:
    """Each error with a complete response has a line; of the other lines only the last are missing."""
    with served(tmp_path) as server:
        answered: dict[str, list[int]] = {"/wrong/1": [], "/wrong/2": [], "/x/3": [], "/x/4": []}

        def ask(path: str) -> None:
            with suppress(OSError, HTTPException):
                for at in range(10_000, 20_000):
                    server.get(f"{path}{at}")
                    answered[path].append(int(f"{path[-1]}{at}"))

        threads = [threading.Thread(target=ask, args=(path,)) for path in answered]
        for thread in threads:
            thread.start()
        until(lambda: min(map(len, answered.values())) >= 20 and server.logged())
        server.process.kill()
        for thread in threads:
            thread.join()
        server.ended()
        errors = {line["fields"]["number"] for line in server.lines() if line["level"] == "error"}
        assert {*answered["/wrong/1"], *answered["/wrong/2"]} <= errors
        logged = server.logged()
        for numbers in answered.values():
            there = [number for number in numbers if number in logged]
            assert there == numbers[: len(there)]


def test_an_outage(tmp_path: Path) -> None:
    """During an outage of the collector requests are counted and have lines; spans arrive after it."""
    with served(tmp_path, listens=False) as server:
        server.send(SENT)
        assert server.counted() == 40
        until(lambda: server.logged() == ALL)
        server.collector.listen()
        until(lambda: server.traced() == ALL)


def test_a_recycled_worker(tmp_path: Path) -> None:
    """A worker ends in order and is replaced while another one runs: total, lines and spans are complete."""
    with served(tmp_path, "--workers", "2") as server:
        until(lambda: len(set(server.send(range(10)))) == 2)
        before = int(server.counted())
        pid = server.send(SENT)[0]
        os.kill(pid, signal.SIGTERM)
        until(lambda: _is_gone(pid))
        assert server.counted() == before + 40
        server.stop()
        assert len(server.logged()) == len(server.traced()) == before + 40


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_standard_output_that_nobody_reads(tmp_path: Path) -> None:
    """With a full pipe requests are served and counted, and their spans arrive."""
    with served(tmp_path, reads=False) as server:
        server.send(range(400))
        assert server.counted() == 400
        until(lambda: server.traced() == list(range(400)))


@pytest.mark.parametrize("event", ["full", "removed"])
def test_a_log_file_that_cannot_be_written(event: str, tmp_path: Path) -> None:
    """With a full disk or a missing directory requests are counted and have lines on standard output, and spans."""
    import resource  # noqa: PLC0415 - Windows has none

    directory = tmp_path / "logs"
    with served(tmp_path, OBSERVE_LOG_FILE=str(directory / "app.log")) as server:
        server.send(range(10))
        until(lambda: list(directory.glob("*.log")))
        (file,) = directory.glob("*.log")
        if event == "removed":
            remove_tree(directory)
        else:  # a limit on the size of its files does what a full disk does; a pipe has none
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        server.send(range(10, 40))
        assert server.counted() == 40
        until(lambda: server.logged() == ALL)
        until(lambda: server.traced() == ALL)
        assert event == "removed" or len(file.read_bytes().splitlines()) < 40


def test_shared_memory_that_is_full(tmp_path: Path) -> None:
    """Full at the start, each worker counts for itself and says so; with space again, any of them is exact.

    All lines and all spans are there.
    """
    with tmpfs(tmp_path / "small", "size=256k,mode=700") as small:
        with suppress(OSError), (small / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with served(tmp_path, "--workers", "2", OBSERVE_MULTIPROCESS_DIRECTORY=str(small)) as server:
            pids: set[int] = set()
            sent = 0
            while len(pids) < 2 or sent < 40:
                pids.update(server.send(range(sent, sent + 10)))
                sent += 10
            samples = server.samples()
            assert samples["fastapi_observe_metrics_degraded"] == 1
            assert samples["fastapi_observe_workers"] == 1
            (small / "ballast").unlink()
            until(lambda: server.samples()["fastapi_observe_workers"] == 2)
            until(lambda: server.samples()["fastapi_observe_metrics_degraded"] == 0)
            server.send(range(sent, sent + 20))
            sent += 20
            for _ in range(8):
                assert server.counted() == sent
            until(lambda: server.logged() == list(range(sent)))
            until(lambda: server.traced() == list(range(sent)))
        warnings = [line for line in server.lines() if "do not share their metrics" in line["message"]]
        assert len(warnings) == 2  # one of each worker


def test_a_workers_directory_that_is_removed(tmp_path: Path) -> None:
    """Removed under two workers: each reports its own requests, with a warning; all lines and spans are there."""
    with served(tmp_path, "--workers", "2") as server:
        pids = set(server.send(SENT))
        sent = 40
        while len(pids) < 2:
            pids.update(server.send(range(sent, sent + 10)))
            sent += 10
        assert server.counted() == sent
        (directory,) = tmp_path.glob("fastapi-observe-*/*")
        remove_tree(directory)
        server.send(range(sent, sent + 10))
        totals: set[float] = set()

        def both_have_answered() -> bool:
            samples = server.samples()
            assert samples["fastapi_observe_metrics_degraded"] == 1
            totals.add(samples["http_requests_total"])
            return any(one + other == sent + 10 for one in totals for other in totals)

        until(both_have_answered)
        until(lambda: server.logged() == list(range(sent + 10)))
        until(lambda: server.traced() == list(range(sent + 10)))
        warnings = [line for line in server.lines() if "no longer share their metrics" in line["message"]]
        assert len(warnings) == 2  # one of each worker


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """After jumps by an hour every request is in all three signals with its real duration, and nothing hangs."""
    with served(tmp_path) as server:
        for at, seconds in ((0, 3600), (10, -3600), (20, 0)):
            server.send(range(at, at + 10))
            server.get(f"/quiet/jump/{seconds}")
        samples = server.samples()
        assert samples["http_requests_total"] == 30
        assert 0 < samples["http_request_duration_seconds_sum"] < 30
        until(lambda: server.logged() == list(range(30)))
        until(lambda: server.traced() == list(range(30)))
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in server.collector.spans)
        assert all(line["fields"]["duration_ms"] >= 0 for line in server.lines() if "duration_ms" in line["fields"])


def test_a_flood_of_scrapes(tmp_path: Path) -> None:
    """During concurrent scrapes every request is in all three signals; no scrape is in any."""
    with served(tmp_path) as server:
        ended = threading.Event()

        def scrape() -> None:
            while not ended.is_set():
                server.get("/metrics")

        threads = [threading.Thread(target=scrape) for _ in range(16)]
        for thread in threads:
            thread.start()
        server.send(SENT)
        ended.set()
        for thread in threads:
            thread.join()
        assert server.counted() == 40
        until(lambda: server.logged() == ALL)
        until(lambda: server.traced() == ALL)
