"""Each function of the package that runs during requests fails, is slow or hangs in turn: the app is not affected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import pytest
from comparison import Server, ask, bare, http_scope
from injection import Injected, OurFaultError, Watched, raises, raises_late, sites, slow
from inside_app import PATHS, Parts, live, make_app

from fastapi_observe import install
from fastapi_observe.records.guard import UNATTRIBUTED_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from comparison import Answer
    from injection import Site

    from fastapi_observe import Observability

# A fault in a callback of the garbage collector, or in one of our threads, is reported by the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

SOAK = "OBSERVE_SOAK" in os.environ
TIMES = 2 if SOAK else 1
PARTS: Final = 16
FEW: Final = PARTS if SOAK or "OBSERVE_ALL_FAULTS" in os.environ else PARTS // 4
"""How many parts of all functions have their turn: all in CI and in the soak, else a fourth."""

OURS: Final = "fastapi-observe"

CARRIERS: Final = frozenset(
    """
    background:_measured.<locals>.call background:_named.<locals>.add
    clients.database.observers:ObserverSet.timed_acquire clients.database.observers:ObserverSet.timed_acquire_async
    clients.database.sqlalchemy:ObservedEngine._observe_execution.<locals>.observed
    clients.database.sqlalchemy:ObservedEngine._observe_transactions.<locals>.counted
    clients.http.body:AsyncBody.__aiter__ clients.http.body:AsyncBody.aclose clients.http.body:SyncBody.__iter__
    clients.http.body:SyncBody.close clients.http.httpx:_observe_async.<locals>.hook
    clients.http.httpx:_observe_async.<locals>.send clients.http.httpx:_observe_sync.<locals>.hook
    clients.http.httpx:_observe_sync.<locals>.send install:_build_with_inner_middleware
    install:_wrap_stack_builder.<locals>.wrap install:_wrap_stack_builder.<locals>.wrap.<locals>.build
    internal.starlette:stack_parts middleware:InnerMiddleware.__call__ middleware:InnerMiddleware.__init__
    middleware:ObserveMiddleware.__call__ middleware:ObserveMiddleware._lifespan
    middleware:ObserveMiddleware._lifespan.<locals>.send_and_follow
    middleware:wrap_validation_handler.<locals>.handle middleware:wrap_validation_handler.<locals>.handle_async
    records.request:RequestRecord.receive records.request:RequestRecord.send
    records.websocket:WebSocketRecord.receive records.websocket:WebSocketRecord.send records.wrapping:_await_inside
    records.wrapping:_wrap_async_generator.<locals>.async_generator
    records.wrapping:_wrap_coroutine.<locals>.coroutine records.wrapping:_wrap_function.<locals>.call
    records.wrapping:_wrap_generator.<locals>.generator traces.service:TracingService.run_in_executor
    """.split()  # noqa: SIM905 - a list would be two pages long
)
"""What hands on a call of the app, a library or the user: no guard of ours is above it, so what it calls is guarded."""

GUARDS: Final = frozenset(
    """
    clients.database.client:DatabaseClient.query clients.database.client:Query.set_row_count
    clients.http.external:ExternalClient.call clients.http.calls:HttpCalls.on_response
    clients.http.calls:HttpCalls.begin clients.http.calls:HttpCalls.on_request
    clients.database.sqlalchemy:ObservedEngine._start clients.database.sqlalchemy:ObservedEngine._end
    clients.database.sqlalchemy:ObservedEngine._changes_transaction
    clients.database.sqlalchemy:ObservedEngine._observe_new_pool
    clients.database.observers:PoolObserver.record_connection_event
    clients.database.observers:PoolObserver.record_connection_wait clients.database.observers:ObserverSet.observer
    current:get_observability middleware:ObserveMiddleware._attach_ids middleware:ObserveMiddleware._finish
    middleware:wrap_validation_handler.<locals>.record_errors records.guard:fail_safe.<locals>.decorate.<locals>.call
    records.operation:Operation.__call__ records.operation:Operation.__enter__ records.operation:Operation.close
    records.operation:Operation.open records.operation:Operation.resume records.operation:Operation.suspend
    records.wrapping:_open_scope metrics.series:BoundedMetric.labels metrics.series:Counter.inc metrics.series:Gauge.inc
    metrics.series:Gauge.set metrics.series:Histogram.observe traces.user_spans:SpanScope.close
    traces.user_spans:SpanScope.open traces.user_spans:SpanScope.resume traces.user_spans:SpanScope.suspend
    traces.user_spans:finish traces.user_spans:make_traced.<locals>.decorate logs.service:ObserveLogger._emit
    """.split()  # noqa: SIM905 - as above
)
"""What does its work in a `try` of its own, because a frame above it would cost the hot path a call."""

PLAIN: Final = frozenset(
    """
    clients.http.record:HttpCall.close current:traced dependencies:get_request_observability
    logs.context:LogContext.__enter__ logs.context:LogContext.__exit__ logs.context:LogContext.__init__
    logs.service:ObserveLogger.__init__ logs.service:ObserveLogger.contextualize logs.service:ObserveLogger.debug
    logs.service:ObserveLogger.error logs.service:ObserveLogger.exception logs.service:ObserveLogger.fatal
    logs.service:ObserveLogger.info logs.service:ObserveLogger.warn logs.service:ObserveLogger.with_fields
    metrics.series:Gauge.dec observability:Observability.log records.operation:Operation.__exit__
    records.wrapping:AsyncWith.__aenter__ records.wrapping:AsyncWith.__aexit__
    traces.user_spans:ContextScope.__enter__ traces.user_spans:ContextScope.__exit__
    traces.user_spans:SpanScope.__enter__ traces.user_spans:SpanScope.__exit__ traces.user_spans:make_traced
    """.split()  # noqa: SIM905 - as above
)
"""What users call and what calls one of the guards, or keeps what it is given, and does nothing else."""

LOGGING: Final = frozenset(
    """
    logs.capture:RootHandler.emit logs.capture:NoLock.__bool__ logs.capture:LogCapture._hand_over
    """.split()  # noqa: SIM905 - as above
)
"""What the standard library's logging calls: guards, and a lock that is none."""

OUTERMOST: Final = CARRIERS | GUARDS | PLAIN | LOGGING

SHOWN_SO: Final = "redaction.values:"
"""Where a value reads `<unprintable>` instead: most often its own class has failed."""

UNCOUNTED: Final = {
    "redaction.names:SecretNames.is_secret_pair": "the value reads <unprintable>",
    "redaction.patterns:hide_values": "as above",
    "redaction.patterns:hide_values_before_names": "as above",
    "redaction.patterns:_keep_quotes": "as above",
    "redaction.patterns:_json_end": "as above",
    "redaction.redactor:Redactor._value_end": "as above",
    "metrics.saturation:GcPauses.__call__": "a callback of the garbage collector may take no lock",
    "metrics.saturation:LocalHistogram.observe": "as above",
    "metrics.loop_monitor:LoopMonitor._beat": "a callback of the event loop: what it calls is guarded",
    "clients.http.body:StreamedBody.__del__": "a finalizer runs inside any lock",
    "records.exceptions:_traceback_parts": "the line itself says that the stack trace cannot be shown",
    "records.exceptions:tail": "as above",
    "redaction.values:ValueRedactor.__init__": "the value reads <unprintable>: most often its own class has failed",
    "redaction.values:ValueRedactor._redact": "as above",
    "redaction.values:ValueRedactor._members_of": "as above",
    "redaction.values:ValueRedactor._string": "as above",
    "redaction.values:_named_members": "as above",
    "logs.messages:is_access_log": "the line shows the message as it was given",
    "observability:Observability.flush": "the beginning of a thread: what it calls is guarded",
    "export.queue:ExportQueue._run": "as above",
    "logs.writer:LineWriter._run": "as above",
}
"""What fails without being counted, and why."""

COUNTED_ELSEWHERE: Final = ("export.", "logs.")
"""What loses spans or lines counts them as dropped."""

UNDER_LOCK: Final = (
    "export.buffer:",
    "export.counts:",
    "export.queue:ExportQueue._is_due",
    "export.queue:ExportQueue._seconds_until_send",
    "internal.clock:",
)
"""What looks at the queue while it holds the lock that `put` needs too: arithmetic, which nothing can block."""

MADE_TWICE: Final = frozenset(
    f"metrics.catalogue:MetricFactory.{name}" for name in ("_create", "create_internal", "register")
)
"""If it fails after its work is done, the metric's name is taken: the next call says so, with `ValueError`."""

KEPT: Final = frozenset(
    {
        "internal.forks:register_at_exit.<locals>.undo",
        "internal.opentelemetry:GlobalProvider.offer.<locals>.withdraw",
        "observability:Observability._flush_and_close.<locals>.flush_and_close",
        "traces.attribute_warnings:throttle_attribute_warnings.<locals>.restore",
    }
)
"""What `close` calls to take back what the process has of ours: the tests that follow would find it."""


@cache
def every_site() -> dict[str, Site]:
    """Return every function of the package."""
    return sites()


@contextlib.contextmanager
def installed(log_file: Path, **options: Any) -> Iterator[tuple[Any, Observability]]:
    """Yield an app that is installed on, with everything switched on, and the collector away."""
    parts = Parts()
    app = make_app(parts)
    observe = install(
        app,
        sample_ratio=1.0,
        log_level="debug",
        log_file=str(log_file),
        otlp_endpoint="http://127.0.0.1:9",
        shutdown_timeout=0.2,
        **options,
    )
    parts.observe(observe)
    try:
        yield app, observe
    finally:
        asyncio.run(parts.close())
        observe.close()


@cache
def expected(times: int) -> list[Answer]:
    """Return what the bare app sends."""
    parts = Parts()
    try:
        return asyncio.run(live(bare(make_app(parts)), times))
    finally:
        asyncio.run(parts.close())


@cache
def called() -> dict[str, set[str]]:
    """Return what runs on behalf of requests, and in which threads."""
    with TemporaryDirectory() as directory:
        with installed(Path(directory) / "first.log") as (app, _):  # what runs once in a process
            asyncio.run(live(app))
        with Watched() as watched, installed(Path(directory) / "app.log") as (app, _):
            watched.called.clear()
            asyncio.run(live(app, TIMES))
    return {name: watched.called[site.code] for name, site in every_site().items() if site.code in watched.called}


def differences(answers: list[Answer], times: int) -> dict[str, Any]:
    """Return by path the responses that differ from those of the bare app."""
    paths = (*(PATHS * times), "lifespan")
    pairs = zip(paths, answers, expected(times), strict=True)
    return {path: answer.raised or answer.messages for path, answer, wanted in pairs if answer != wanted}


def broken(name: str, fault: Callable[..., Any], directory: Path) -> dict[str, Any]:
    """Serve the app while a function fails; return what that changed."""
    site = every_site()[name]
    injected = Injected(site, fault)
    UNATTRIBUTED_ERRORS.counts.clear()
    with contextlib.ExitStack() as stack:
        if site.inner is not None:  # it is made again when the function around it runs
            stack.enter_context(injected)
        app, observe = stack.enter_context(installed(directory / "app.log"))
        try:
            with injected:
                answers = asyncio.run(live(app, TIMES))
        except (OurFaultError, TimeoutError) as exc:  # it reached the event loop, or nothing goes on
            return {"raised": exc}
    changed = differences(answers, TIMES)
    counted = bool(observe.internal_errors.counts or UNATTRIBUTED_ERRORS.counts or name.startswith(COUNTED_ELSEWHERE))
    if fault is raises and injected.calls and not counted and not (name in UNCOUNTED or name.startswith(SHOWN_SO)):
        changed["counted"] = False
    return changed


def of_part(names: Iterator[str], part: int) -> list[str]:
    """Return the share of a part."""
    return sorted(name for name in names if crc32(name.encode()) % PARTS == part)


@pytest.mark.parametrize("part", range(FEW))
@pytest.mark.parametrize("fault", [raises, raises_late, slow] if SOAK else [raises])
def test_whatever_fails_the_app_answers_as_without_us(
    tmp_path: Path, fault: Callable[..., Any], part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each function that runs on behalf of a request fails in turn: same messages, same exceptions; it is counted."""
    spared = KEPT | (OUTERMOST if fault is not slow else frozenset())
    if fault is raises_late:
        spared |= MADE_TWICE
    changed = {}
    for name in of_part(iter(called()), part):
        if name not in spared and (fault is not slow or every_site()[name].inner is None):
            changed[name] = broken(name, fault, tmp_path)
            capsys.readouterr()
    assert {name: found for name, found in changed.items() if found} == {}
    assert len(changed) >= 10


def test_what_is_spared_exists() -> None:
    """The lists of what cannot fail in this way name functions of this package, and are far shorter than the rest."""
    assert OUTERMOST | UNCOUNTED.keys() | MADE_TWICE | KEPT <= every_site().keys()
    assert len(OUTERMOST) == sum(map(len, (CARRIERS, GUARDS, PLAIN, LOGGING)))
    assert len(called()) > 4 * len(OUTERMOST)


# Threads


class Hanging:
    """Makes our threads wait, from the first call on until it is released."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.over = threading.Event()

    def __call__(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait in a thread of this package, do the work in any other."""
        if threading.current_thread().name.startswith(OURS):
            self.reached.set()
            self.over.wait(20)
        return original(*args, **kwargs)


class HangsError(BaseException):
    """A block takes too long; no guard may catch it."""


@contextlib.contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raise in the main thread where the block takes longer."""

    def give_up(*_: object) -> None:
        raise HangsError(seconds)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def _live_and_scrape(app: Any) -> tuple[list[Answer], int]:
    answers = await live(app)
    scraped = await ask(app, http_scope("/metrics"), Server([]), [])
    return answers, scraped.messages[0]["status"]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm here")
@pytest.mark.parametrize("part", range(FEW))
def test_whatever_hangs_in_our_threads_the_app_is_served(
    tmp_path: Path, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each function that runs in a thread of this package hangs there: requests, scrape and shutdown are as without."""
    ours = {name for name, threads in called().items() if any(each.startswith(OURS) for each in threads)}
    names = [name for name in of_part(iter(ours), part) if not name.startswith(UNDER_LOCK)]
    names = [name for name in names if every_site()[name].inner is None]
    found = {}
    for name in names:
        found[name] = hanging(name, tmp_path)
        capsys.readouterr()
    assert {name: changed for name, changed in found.items() if changed} == {}


def hanging(name: str, directory: Path) -> dict[str, Any]:
    """Serve the app while a function hangs in our threads; return what that changed."""
    hang = Hanging()
    with Injected(every_site()[name], hang), contextlib.ExitStack() as stack:
        app, _ = stack.enter_context(installed(directory / "app.log"))
        stack.callback(hang.over.set)
        try:
            with no_longer_than(5):
                answers, status = asyncio.run(_live_and_scrape(app))
        except HangsError as exc:
            return {"served": exc}
        finally:
            hang.over.set()
        return differences(answers, 1) | ({} if status == 200 else {"/metrics": status})
