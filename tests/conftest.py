"""What the tests share: an app with its three signals caught, and real servers."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from prometheus_client.parser import text_string_to_metric_families
from tools import HOST_WARNINGS, no_thread_starts

from fastapi_observe import install
from fastapi_observe.doctor import probe
from fastapi_observe.internal.forks import NO_THREAD_THROTTLE
from fastapi_observe.internal.opentelemetry import GLOBAL_PROVIDER
from fastapi_observe.logs.handlers import SERVER_LOGGERS
from fastapi_observe.observability import INSTALLED
from fastapi_observe.slo import http_get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from members import Member
    from opentelemetry.sdk.trace import ReadableSpan
    from starlette.applications import Starlette

    from fastapi_observe import Observability


# A busy machine makes slow examples, not wrong ones. In CI the examples are the same in every run.
settings.register_profile(
    "observe",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    max_examples=100 if "OBSERVE_SOAK" in os.environ else 25,
)
settings.load_profile("observe")


def pytest_configure(config: pytest.Config) -> None:
    """Let hosts of another time warn about themselves; keep every trace, of which tests make many in a second."""
    os.environ.setdefault("OBSERVE_MAX_TRACES_PER_SECOND", "")
    os.environ.setdefault("OBSERVE_TAIL_SAMPLING", "")
    os.environ.setdefault("OBSERVE_INSTRUMENT", "none")  # all tests share one process, and its libraries
    os.environ.setdefault("OBSERVE_BLOCKED_LOOP_THRESHOLD", "")  # a busy machine blocks loops: tests count log lines
    # Commands wait for a server on a busy machine. The tests of these timeouts set their own.
    for module, name in ((probe, "RESPONSE_TIMEOUT"), (http_get, "READ_TIMEOUT"), (http_get, "TOTAL_TIMEOUT")):
        setattr(module, name, 120.0)
    for line in HOST_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_finish() -> None:
    """Keep what imports and collection have made out of later collections of garbage, of which tests ask for many."""
    given(none())(lambda _: None)()  # Hypothesis looks for what refers to its random numbers: not in frozen objects
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one part of the tests if `OBSERVE_PART` names one: the second of four is `2/4`."""
    part, _, parts = os.environ.get("OBSERVE_PART", "").partition("/")
    if parts:
        left_out = [item for at, item in enumerate(items) if at % int(parts) != int(part) - 1]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for at, item in enumerate(items) if at % int(parts) == int(part) - 1]


@pytest.fixture(autouse=True)
def _server_loggers() -> Iterator[None]:
    """Put servers' loggers back: each `uvicorn.Config` gives them handlers, on the standard error of its test."""
    loggers = [logging.getLogger(name) for name in SERVER_LOGGERS]
    before = [(one, one.handlers[:], one.filters[:], one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, filters, level, propagate in before:
        one.handlers, one.filters, one.propagate = handlers, filters, propagate
        one.setLevel(level)


class Seen:
    """What the three signals of one app have reported."""

    def __init__(
        self, observe: Observability, exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.observe = observe
        self._exporter = exporter
        self._capsys = capsys
        self._text = ""

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every ended span, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    @property
    def server_spans(self) -> list[ReadableSpan]:
        """Every ended server span."""
        return [span for span in self.spans if span.kind.name == "SERVER"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every JSON line on stdout so far."""
        self.observe.flush()
        self._text += self._capsys.readouterr().out
        return [json.loads(line) for line in self._text.splitlines() if line.startswith("{")]

    @property
    def request_lines(self) -> list[dict[str, Any]]:
        """Every line about a whole request or WebSocket connection."""
        wanted = {"HTTP request completed", "WebSocket connection closed"}
        return [line for line in self.lines if line["message"] in wanted]

    @property
    def text(self) -> str:
        """`/metrics` in the text format, as it would be served."""
        headers, body = self.observe.metrics.render("", "")
        return (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()

    def samples(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the samples of one series name, by sorted labels."""
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name
        }

    def sample(self, name: str, **labels: str) -> float | None:
        """One sample, or None."""
        return self.samples(name).get(tuple(sorted(labels.items())))

    def total(self, name: str) -> float:
        """Sum of all samples of one series name."""
        return sum(self.samples(name).values())


@pytest.fixture(autouse=True)
def _no_context() -> None:
    """Begin without an OpenTelemetry context: an error that is injected where one is detached leaves it behind."""
    otel_context.attach(Context())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what a test installed and left open: `get_observability()` of the next one would not know whom to take.

    The example is imported once and stays installed.
    """
    before = {id(one) for one in INSTALLED}
    yield
    kept = {id(getattr(module, "app", None)) for name, module in sys.modules.items() if name.startswith("example_app")}
    for one in [each for each in INSTALLED if id(each) not in before and id(each.app) not in kept]:
        one.close()
    for one in INSTALLED:  # an example that was imported while a test had removed OBSERVE_INSTRUMENT
        one.instrumentors.switch_off()


@pytest.fixture
def no_global_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test set the global provider, which OpenTelemetry allows once in a process.

    The provider of the example, which stays installed, is not a candidate meanwhile.
    """
    monkeypatch.setattr(GLOBAL_PROVIDER, "_offers", [])
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


DEFAULT: Any = object()
"""An override that leaves an option at its default."""


@pytest.fixture
def observed(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Seen]]:
    """Install on an app, every trace sampled; closed after the test."""
    seen: list[Seen] = []

    def make(app: Starlette, **overrides: Any) -> Seen:
        exporter = InMemorySpanExporter()
        options: dict[str, Any] = {
            "sample_ratio": 1.0,
            "max_traces_per_second": None,
            "span_processors": (SimpleSpanProcessor(exporter),),
            "log_level": "debug",
            "metrics_access": "private",  # the default, but chosen: the hint about it is not logged
            **overrides,
        }
        options = {name: value for name, value in options.items() if value is not DEFAULT}
        seen.append(Seen(install(app, **options), exporter, capsys))
        return seen[-1]

    yield make
    for one in reversed(seen):
        one.observe.close()


@pytest.fixture
def during() -> Iterator[ExitStack]:
    """Provide what is entered in a test and left after it: pytest sets its own standard output after the fixtures."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def no_threads() -> Iterator[None]:
    """Let no thread start, as at the limit of threads."""
    NO_THREAD_THROTTLE.reset()
    with no_thread_starts():
        yield


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like a worker of gunicorn."""
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27.0.1")


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Callable[..., Member]]:
    """Make members of a server's workers that leave after the test."""
    from members import Member  # noqa: PLC0415 - not on Windows

    made: list[Member] = []

    def make(**settings: Any) -> Member:
        made.append(Member(tmp_path, **settings))
        return made[-1]

    yield make
    for one in reversed(made):
        if not one.ended:
            one.leave()
