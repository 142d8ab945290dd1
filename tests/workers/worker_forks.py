"""Scripts that fork, stop and kill workers: `python worker_forks.py SCRIPT DIRECTORY` prints the result as JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from random import Random
from time import sleep
from typing import TYPE_CHECKING, Any

import interpreter
import prometheus_client
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fastapi_observe import install
from fastapi_observe.metrics.shared.join import JOINED_WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from members import Samples
    from opentelemetry.sdk.trace import ReadableSpan

    from fastapi_observe import Observability
    from fastapi_observe.metrics.shared.join import WorkerGroup

HERE = Path(__file__).parent
LISTENERS: list[socket.socket] = []


def make_install(directory: str) -> tuple[Observability, WorkerGroup]:
    """Install on an app of this process, which has a listening socket for its children."""
    LISTENERS.append(socket.create_server(("127.0.0.1", 0)))
    observe = install(FastAPI(), multiprocess_directory=directory, log_level="fatal", otlp_endpoint=None)
    return observe, observe.workers


def samples(observe: Observability) -> Samples:
    """Scrape."""
    _, body = observe.metrics.render("", "")
    found: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def total(observe: Observability, name: str) -> float:
    """Scrape: the sum of one series name."""
    return sum(samples(observe).get(name, {}).values())


class Child:
    """A forked process that calls `act` with each word that it receives."""

    def __init__(self, act: Callable[[str], Any]) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(requests)
            os.close(replies)
            return
        try:
            while (word := os.read(requests, 100).decode()) not in {"", "end"}:
                os.write(replies, json.dumps(act(word)).encode() + b"\n")
        finally:
            _save_coverage()
            os._exit(0)

    def call(self, word: str) -> Any:
        """Send a word. Returns the reply."""
        os.write(self._requests, word.encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(self._replies, 65536)
        return json.loads(answer)

    def end(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        self._close()

    def finish(self) -> None:
        """Let it end."""
        os.write(self._requests, b"end")
        self._close()

    def _close(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._requests)
        os.close(self._replies)


def _save_coverage() -> None:
    """Save the coverage data, if it is measured: a forked child runs no exit handlers."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None:
        current.stop()
        current.save()


def run(script: str, *arguments: object) -> Any:
    """Run a script in a process of its own, since a process with threads must not fork. Returns its result."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import worker_forks\n"
        "print(json.dumps(getattr(worker_forks, sys.argv[1])(*sys.argv[2:])))"
    )
    process = interpreter.run(code, script, *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def instance(url: str, times: str) -> dict[str, Any]:
    """Children of a process that has served a request already; each serves one and sends everything to `url`."""
    ended: list[str] = []

    class Noting(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ended.append(str(span.resource.attributes["service.instance.id"]))

    app = FastAPI()

    @app.get("/")
    async def page() -> int:
        with trace.get_tracer("theirs").start_as_current_span("theirs"):
            return os.getpid()

    install(
        app, otlp_endpoint=url, otlp_logs=True, otlp_metrics=True, sample_ratio=1.0, multiprocess="off",
        span_processors=(Noting(),),
    )  # fmt: skip

    def act(_: str) -> list[str]:
        ended.clear()
        with TestClient(app) as client:
            client.get("/")
        return ended

    before = [*act("")]
    children = [Child(act) for _ in range(int(times))]
    found = [child.call("request") for child in children]
    for child in children:
        child.finish()
    return {"parent": before, "children": found}


def preload(directory: str) -> dict[str, float]:
    """Two children of a process that has counted already."""
    observe, workers = make_install(directory)
    ours = observe.metrics.counter("ours_total", "Ours.")
    theirs = prometheus_client.Counter("theirs", "Theirs.")
    gauge = observe.metrics.gauge("gauge", "Gauge.")
    ours.inc(100)
    theirs.inc(100)
    gauge.set(5)

    def act(word: str) -> float:
        before = ours.cells[0]
        if word == "count":
            ours.inc()
            theirs.inc()
            workers.start()
        elif word == "scrape":
            return {name: total(observe, f"{name}") for name in ("ours_total", "theirs_total", "gauge")}  # type: ignore[return-value]
        return before

    children = [Child(act), Child(act)]
    before = sum(child.call("count") for child in children)
    found = children[1].call("scrape")
    for child in children:
        child.finish()
    return {"ours": found["ours_total"], "theirs": found["theirs_total"], "gauge": found["gauge"], "before": before}


def fork(directory: str) -> dict[str, float]:
    """Fork a worker."""
    os.environ["SERVER_SOFTWARE"] = "gunicorn"
    observe, workers = make_install(directory)
    workers.start()
    ours = observe.metrics.counter("ours_total", "Ours.")
    theirs = prometheus_client.Counter("theirs", "Theirs.")
    ours.inc()
    theirs.inc()

    def act(word: str) -> float:
        if word == "open":
            links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
            return sum(directory in link for link in links)
        if word == "join":
            workers.start()
        ours.inc(5 if word == "count" else 3)
        theirs.inc()
        return total(observe, "ours_total")

    ((worker, _),) = JOINED_WORKERS.values()
    with worker._read_lock:  # a fork would copy what the worker's thread has open at the moment
        child = Child(act)
    opened = child.call("open")
    counted = child.call("count")
    alone = total(observe, "ours_total")
    assert total(observe, "theirs_total") == 1
    joined = child.call("join")
    child.finish()
    observe.close()
    return {"parent": alone, "child": counted, "open": opened, "joined": joined}


def kills(directory: str, times: str) -> dict[str, float]:
    """Children that count until they are killed, and two that scrape."""
    observe, workers = make_install(directory)
    random = Random(5)  # noqa: S311 - when to kill

    def scrape(word: str) -> float:
        workers.start()
        return total(observe, word)

    scrapers = [Child(scrape), Child(scrape)]
    reading, writing = os.pipe()
    counted, shown, backwards, known = 0, 0.0, 0, 0
    for number in range(int(times)):
        pid = os.fork()
        if not pid:
            workers.start()
            steady = observe.metrics.counter("steady_total", "Steady.", ["kind"])
            steady.labels(number % 5).inc(number)
            observe.metrics.gauge("living", "Living.").set(1)
            while True:
                observe.metrics.business.user_registered()
                os.write(writing, b"x")
        known += number
        counted += len(os.read(reading, 1))
        sleep(random.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.set_blocking(reading, False)
        try:
            while part := os.read(reading, 65536):
                counted += len(part)
        except BlockingIOError:
            os.set_blocking(reading, True)
        now = scrapers[number % 2].call("user_registrations_total")
        backwards += now < shown
        shown = now
    exact = scrapers[0].call("steady_total")
    assert scrapers[1].call("steady_total") == exact
    assert scrapers[0].call("living") == 0
    (place,) = Path(directory).glob("*/*")
    files = list(place.iterdir())
    found = {
        "kills": int(times), "counted": counted, "total": shown, "backwards": backwards, "exact": exact, "known": known,
        "files": len(files), "bytes": sum(path.stat().st_size for path in files),
    }  # fmt: skip
    for scraper in scrapers:
        scraper.end()
    return found


def stopped(directory: str) -> dict[str, float]:
    """Stop a worker, and scrape another."""
    import threading  # noqa: PLC0415 - the children's

    observe, workers = make_install(directory)
    counter = observe.metrics.counter("jobs_total", "Jobs.")
    observe.metrics.gauge("asked", "Asked.").set_function(lambda: 1)

    def act(word: str) -> Any:
        workers.start()
        if word == "count":
            counter.inc(3)
            return total(observe, "asked")
        gauge = sum(value for value in samples(observe)["asked"].values())
        return {"total": total(observe, "jobs_total"), "gauge": gauge - 1, "threads": threading.active_count()}

    children = [Child(act), Child(act)]
    children[0].call("count")
    os.kill(children[0].pid, signal.SIGSTOP)
    found: dict[str, float] = children[1].call("scrape")
    children[0].end()
    children[1].finish()
    return found


def leaves(directory: str) -> dict[str, float]:
    """Two workers count; one leaves in order."""
    observe, workers = make_install(directory)
    counter = observe.metrics.counter("jobs_total", "Jobs.")
    observe.metrics.gauge("level", "Level.").set(1)

    def act(word: str) -> float:
        if word == "request.finish":
            workers.stop()
            return 0
        workers.start()
        counter.inc(3)
        return total(observe, word)

    children = [Child(act), Child(act)]
    for child in children:
        child.call("jobs_total")
    both = children[1].call("level")
    children[0].call("request.finish")
    found = {"both": both, "level": children[1].call("level"), "jobs": children[1].call("jobs_total")}
    found["files"] = len(list(Path(directory).glob("*/*/*.index")))
    for child in children:
        child.finish()
    return found
