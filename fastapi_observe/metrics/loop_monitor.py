"""Measures the lag of the event loop, and finds the code that blocks it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from contextlib import suppress
from contextvars import ContextVar
from time import process_time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.records.frames import DEFAULT_OWN_CODE, find_record
from fastapi_observe.records.guard import report_error
from fastapi_observe.records.request import CONTEXT_KEY, RecordRef

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.records.frames import Location, OwnCode
    from fastapi_observe.records.request import RequestRecord

BEAT_INTERVAL: Final = 0.02
"""Seconds between two timers of the loop. A stall is measured from the timer that it delays, so that on average half of
this is missing from each."""

SECOND_LOOK: Final = 0.02
"""Seconds after which the same task must still run: otherwise the loop is busy with many short callbacks."""

SAMPLE_EVERY: Final = 25
"""Timers on time per sample in the histogram: two samples per second, as many as the alerts are made for."""

MIN_CPU_FRACTION: Final = 0.5
"""Fraction of a stall that the process must have used the processor for, if the thread could not see what runs: code
in C that holds the interpreter lock, or that a loop written in C has called."""


class BlockedLoop(NamedTuple):
    """One time that the event loop was blocked. The location is the innermost frame of the user's code, or of any code.

    `location` is None if the block ended before it could be looked at, or the loop itself was running. `record` is None
    then too, and outside requests.
    `in_progress` is the number of requests in progress when it was looked at, the blocking one included. `cpu_seconds`
    is the processor time that the process used meanwhile.
    """

    seconds: float
    location: Location | None
    record: RequestRecord | None
    in_progress: int
    cpu_seconds: float

    @property
    def is_by_code(self) -> bool:
        """Whether code blocked the loop. Otherwise the process did not run: the machine was busy, or has slept."""
        return self.location is not None or self.cpu_seconds >= MIN_CPU_FRACTION * self.seconds


class BlockedLoopReport:
    """Counts each time that the event loop was blocked, and logs it if code did it.

    `observers` get what is logged, with method and endpoint. `find_template` returns the route template of a request,
    `count` adds seconds to the metric of an endpoint.
    """

    def __init__(self, find_template: Callable[[Any, int], str], count: Callable[[str, float], object] | None) -> None:
        self.observers: list[Callable[[BlockedLoop, str, str], object]] = []
        self._find_template = find_template
        self._count = count
        self._throttle = LogThrottle()

    def __call__(self, blocked: BlockedLoop) -> None:
        """Report it. Called in the loop, after the block."""
        record, location = blocked.record, blocked.location
        method, endpoint = "", "outside_requests"
        if record is not None:
            method, endpoint = record.method, record.endpoint
            if not record.reported:
                endpoint = self._find_template(record.scope, record.status_code or 200)
        if self._count is not None:
            self._count(endpoint, blocked.seconds)
        if not blocked.is_by_code:
            return
        for observer in self.observers:
            observer(blocked, method, endpoint)
        place = "code that could not be found" if location is None else f"{location.file}:{location.line}"
        if self._throttle.allow(place):
            logging.getLogger("fastapi_observe").warning(
                "The event loop was blocked for %.2f s by %s (%s); requests in progress: %d. Use await, or run "
                "the code in a thread: a path operation without async, or asyncio.to_thread.",
                blocked.seconds,
                place if location is None else f"{place} in {location.function}",
                f"{method} {endpoint}" if method else "outside of a request",
                blocked.in_progress,
            )


class LoopMonitor:
    """Runs a timer in one event loop at a time; a thread looks at the loop's stack only while the timer is late.

    `observe` gets the lag of a sample in seconds, and each stall once. `on_blocked` is called in the loop after a stall
    of at least `threshold` seconds; None switches that off, and the thread with it.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the last four are for tests, and for the report
        self,
        observe: Callable[[float], None],
        threshold: float | None = None,
        on_blocked: Callable[[BlockedLoop], None] | None = None,
        interval: float = BEAT_INTERVAL,
        in_progress: Callable[[], int] = int,
        own_code: OwnCode = DEFAULT_OWN_CODE,
        cpu_clock: Callable[[], float] = process_time,
    ) -> None:
        self._cpu_clock = cpu_clock
        self._in_progress = in_progress
        self._own_code = own_code
        self._observe = observe
        self._threshold = threshold if on_blocked is not None else None
        self._on_blocked = on_blocked
        self._interval = interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._thread_id = 0
        self._loop_caller = 0
        self._beats = 0
        self._due = 0.0
        self._cpu_before = 0.0
        self._found: tuple[float, BlockedLoop] | None = None
        self._busy_due = 0.0
        # Held while the thread is to run: it waits for the lock, which costs a tenth of waiting for an `Event`.
        self._running: threading.Lock | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start in the running loop of this thread."""
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._wait()
        if self._threshold is not None:
            self._running = running = threading.Lock()
            running.acquire()
            thread = threading.Thread(
                target=self._watch, args=(running, self._threshold), name="fastapi-observe-loop", daemon=True
            )
            with suppress(RuntimeError):  # no thread can be started: stalls are measured, but not located
                thread.start()

    def stop(self) -> None:
        """Stop. Idempotent; any thread."""
        if self._running is not None:
            self._running.release()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = self._running = None

    def _wait(self) -> None:
        loop = self._loop
        if loop is not None:
            self._due, self._cpu_before = monotonic() + self._interval, self._cpu_clock()
            self._timer = loop.call_later(self._interval, self._beat)

    def _beat(self) -> None:
        if not isinstance(self._loop, asyncio.BaseEventLoop):  # written in C, such as uvloop: it has no frames
            self._loop_caller = id(sys._getframe().f_back)  # noqa: SLF001 - the documented way to the current frame
        try:
            lag = max(0.0, monotonic() - self._due)
            self._beats += 1
            if lag > self._interval or self._beats % SAMPLE_EVERY == 0:
                self._observe(lag)
            if self._is_block(lag) and self._on_blocked is not None:
                found = self._found
                known = found is not None and found[0] == self._due  # not of an earlier stall
                blocked = found[1] if found is not None and known else self._make_report(None, None)
                self._on_blocked(blocked._replace(seconds=lag, cpu_seconds=self._cpu_clock() - self._cpu_before))
            self._found = None
        except Exception as exc:  # noqa: BLE001 - else it goes to the exception handler that the app has set for its loop
            report_error("saturation", exc)
        self._wait()

    def _make_report(self, location: Location | None, record: RequestRecord | None) -> BlockedLoop:
        return BlockedLoop(0.0, location, record, self._in_progress(), 0.0)

    def _is_block(self, lag: float) -> bool:
        return self._threshold is not None and lag >= self._threshold and self._busy_due != self._due

    def _current_task(self) -> object:
        loop = self._loop
        return None if loop is None else asyncio.current_task(loop)

    def _watch(self, running: threading.Lock, threshold: float) -> None:
        """Look at the loop's thread once in each stall, as soon as it has lasted `threshold` seconds."""
        looked_at = 0.0
        while not running.acquire(timeout=threshold / 2):
            due = self._due
            if due != looked_at and monotonic() - due >= threshold:
                looked_at = due
                loop = self._loop
                if loop is not None and not loop.is_running():
                    self._busy_due = (
                        due  # between two runs of a loop, as in a notebook or AWS Lambda, nothing is blocked
                    )
                    continue
                frame: Any = None
                task: object = None
                try:
                    task = self._current_task()
                    if running.acquire(timeout=SECOND_LOOK):
                        return
                    if self._due != due or self._current_task() is not task:
                        self._busy_due = due  # many short callbacks: the loop is overloaded, but nothing blocks it
                        continue
                    frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - documented for this use
                    location = self._own_code.innermost_location(frame, self._loop_caller)
                    self._found = due, self._make_report(location, find_record(frame) or _record_of(task))
                except Exception as exc:  # noqa: BLE001 - the stack changes while it is read
                    report_error("saturation", exc)
                finally:
                    del frame, task


def _record_of(task: object) -> RequestRecord | None:
    """Return the record of the request that a task was started in, if that is still served.

    None before Python 3.12, where the context of a task cannot be read.
    """
    get_context = getattr(task, "get_context", None)
    if get_context is None or not isinstance(OTEL_CONTEXT, ContextVar):
        return None
    reference = get_context().get(OTEL_CONTEXT, {}).get(CONTEXT_KEY)
    record = reference.record if isinstance(reference, RecordRef) else None
    return None if record is None or record.job else record
