"""`ExportQueue`: takes the items of one signal from any thread and exports them from a thread of its own.

`put` appends to a deque. The thread that completes a slice of `ENCODE_BATCH` items encodes it, because a separate
encoding thread would compete for the GIL and cost half as much again. Queued items are therefore small, their size in
bytes is known, and a slow Collector delays only the sending thread.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import attach, set_value

from fastapi_observe.export.buffer import ENCODE_BATCH, ExportBuffer, QueueLimits
from fastapi_observe.export.transport import ExportResult
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import ShutdownDeadline, register_at_exit, register_at_fork, start_thread
from fastapi_observe.internal.opentelemetry import SUPPRESSION_KEY
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.internal.version import documentation_url

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.export.otlp.wire import RequestEncoder
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.internal.errors import InternalErrors

PROBE_AFTER_FAILURES: Final = 3
"""Failures in a row after which only probes, requests without items, are sent until one gets a response."""

PROBE_INTERVAL: Final = 5.0
"""Seconds between two probes."""

INITIAL_BACKOFF: Final = 1.0
"""Seconds until the second attempt; doubled for the third."""

JITTER: Final = 0.2
"""Fraction by which a backoff is changed at random, so that many processes do not retry at the same moment."""

ERROR_BACKOFF: Final = 0.05
"""Seconds that the sending thread sleeps after an internal error, so that a repeated one does not use a whole core."""

THREAD_JOIN_TIMEOUT: Final = 0.2
"""Seconds that `close` waits for the sending thread after its request was aborted."""

# Not the module's functions: they would change what a seeded `random` returns to the app.
_RANDOM: Final = random.Random()  # noqa: S311 - not a secret


# The states of a connection to the Collector. `failures` counts the failures in a row.
#
#   working (failures = 0) -- failure --> backing off (failures = 1, 2; items wait until `retry_at`)
#   backing off -- third failure --> probing (a request without items every PROBE_INTERVAL)
#   probing -- reply --> items are sent at once -- failure --> probing
#   any -- items accepted --> working


class CollectorOutage:
    """The failures in a row of one queue: when to try again, and what to log. Used by the sending thread."""

    def __init__(self, items: str, target: str, clock: Callable[[], float] = monotonic) -> None:
        self.failures = 0
        self.retry_at = 0.0
        self.retry_after_set = False  # the Collector has set `retry_at`: a flush does not ignore it
        self.probing = False
        self.items = items
        self.target = target
        self._clock = clock
        self._throttle = LogThrottle()
        self._started_at = 0.0
        self._dropped_before = 0

    def record_failure(self, result: ExportResult, *, probe: bool) -> None:
        """Record a failed request; `probe` means that it carried no items."""
        if probe and result.reason == "http_4xx":  # the Collector runs, it only rejects an empty request
            self.record_probe_reply()
            return
        now = self._clock()
        if not self.failures:
            self._started_at = now
        self.failures += 1
        self.probing = self.failures >= PROBE_AFTER_FAILURES
        backoff = PROBE_INTERVAL if self.probing else INITIAL_BACKOFF * 2 ** (self.failures - 1)
        backoff *= _RANDOM.uniform(1 - JITTER, 1 + JITTER)
        self.retry_after_set = result.retry_after is not None
        self.retry_at = now + max(backoff, result.retry_after or 0.0)
        self.warn(
            result.reason,
            f"Cannot export {self.items} to {self.target}: {result.message}. {_consequence(result)} "
            "Logged at most once a minute.",
        )

    def record_probe_reply(self) -> None:
        """Record that a probe got a response: the next request carries items."""
        self.probing, self.retry_at, self.retry_after_set = False, 0.0, False

    def record_success(self, dropped: int) -> None:
        """Record that items were accepted; log the end of an outage. `dropped` is the queue's total of drops so far."""
        if self.failures:
            self.record_probe_reply()
            self.failures = 0
            self._throttle.reset()
            seconds, since = self._clock() - self._started_at, dropped - self._dropped_before
            _log(f"Export of {self.items} to {self.target} recovered after {seconds:.0f} s; {since} were dropped.")
        self._dropped_before = dropped

    def warn(self, cause: str, message: str) -> None:
        """Log a warning, at most once a minute for each cause."""
        if self._throttle.allow(cause):
            _log(message)


def _consequence(result: ExportResult) -> str:
    if not result.retry:
        return "This batch was dropped."
    if result.maybe_received and not result.retry_later:
        return "This batch is retried once; newer items stay queued."
    return "Items stay queued; the oldest are dropped when the queue is full (queue_size)."


def _log(message: str) -> None:
    with suppress(Exception):  # a user's log handler may raise anything
        logging.getLogger("fastapi_observe").warning(message)


class ExportQueue:
    """Queues, encodes and sends items of one signal; keeps the newest and counts the others.

    The sending thread starts with the first item; in a forked child, with the child's first item. `name` is the plural
    noun used in log messages. `shutdown_deadline` may be shared with other queues.

    Locks: the state is in the buffer and changes under `buffer.changed`, which is never held while items are encoded or
    sent. The sending thread and threads in `flush` wait on it.
    """

    def __init__(
        self,
        name: str,
        encoder: RequestEncoder,
        transport: Transport,
        limits: QueueLimits,
        internal_errors: InternalErrors,
    ) -> None:
        self.name = name
        self.shutdown_deadline = ShutdownDeadline()
        self._encoder = encoder
        self._transport = transport
        self._limits = limits
        self._internal_errors = internal_errors
        self._reset()
        register_at_fork(self, ExportQueue._reset_after_fork)

    def _reset(self) -> None:
        self._buffer = ExportBuffer(self._limits)
        self._outage = CollectorOutage(self.name, self._transport.target)
        self._thread: threading.Thread | None = None
        self._undo_exit: Callable[[], None] | None = None
        self._flush_deadlines: list[float] = []
        self._tried = False  # a request was sent since the last flush started
        self._gave_up = False  # the next attempt is later than the deadline of every flush
        self._warned_drops: Counter[str] = Counter()

    def _reset_after_fork(self) -> None:
        # The parent still has the queued items and sends them. Locks are replaced because a thread that does not exist
        # in the child may have held them during the fork.
        self._transport.detach_after_fork()
        self._reset()

    # Called by any thread

    def put(self, item: Any) -> None:
        """Queue an item. Costs an append; every `ENCODE_BATCH`-th call encodes a slice. Never blocks on the network."""
        buffer = self._buffer
        raw = buffer.raw
        raw.append(item)
        if len(raw) >= buffer.wake_at:
            self._react()

    def counts(self) -> Counts:
        """Return all counts, read at one moment."""
        return self._buffer.counts()

    def flush(self, timeout: float) -> bool:
        """Send what has been put so far, within `timeout` seconds. Returns whether all of it was exported.

        What was dropped before the call does not count. Returns early if the Collector fails and the next attempt would
        be too late.
        """
        deadline = monotonic() + timeout
        buffer = self._buffer
        with buffer.changed:
            buffer.drop_oldest()
            goal, dropped = buffer.produced_count(), buffer.dropped.total()
            if buffer.settled_count() >= goal:
                return True
        if self._thread is None:
            self._react()
        exported = self._wait_until_settled(goal, deadline) and buffer.dropped.total() == dropped
        left = goal - buffer.settled_count()
        if left > 0:
            self._outage.warn(
                "flush",
                f"{left} {self.name} were not exported to {self._outage.target} in time. They are lost if the process "
                "ends now. Check that the endpoint responds, or raise shutdown_timeout.",
            )
        return exported

    def _wait_until_settled(self, goal: int, deadline: float) -> bool:
        """Wait until `goal` items are exported or dropped. Returns whether they are."""
        buffer = self._buffer
        with buffer.changed:
            self._flush_deadlines.append(deadline)
            self._tried = self._gave_up = False
            buffer.changed.notify_all()
            try:
                while buffer.settled_count() < goal and not self._gave_up and not buffer.abandoned:
                    left = deadline - monotonic()
                    if left <= 0:
                        break
                    buffer.changed.wait(left)
            finally:
                self._flush_deadlines.remove(deadline)
            self._gave_up = buffer.settled_count() < goal
            return not self._gave_up

    def close(self, timeout: float | None = None) -> None:
        """Flush within `timeout` seconds (default: `shutdown_timeout`), drop the rest and end the thread. Idempotent.

        If the last flush failed and nothing was exported since, it is not repeated.
        """
        deadline = monotonic() + (self._limits.shutdown if timeout is None else timeout)
        buffer = self._buffer
        if not buffer.closed and not self._gave_up:
            self.flush(max(0.0, deadline - monotonic()))
        with buffer.changed:
            if buffer.closed:
                return
            buffer.closed = True
            buffer.changed.notify_all()
        self._transport.abort()
        if self._thread is not None:
            self._thread.join(THREAD_JOIN_TIMEOUT)
        buffer.abandon()
        if self._undo_exit is not None:
            self._undo_exit()

    def _close_at_exit(self) -> None:
        self.close(self.shutdown_deadline.remaining(self._limits.shutdown))

    def _react(self) -> None:
        """Do what the newest item requires: start the thread, start the delay, or encode a slice."""
        buffer = self._buffer
        try:
            if buffer.closed:
                buffer.drop_late_items()
            elif len(buffer.raw) >= ENCODE_BATCH:
                self._encode_slice()
            else:
                buffer.start_delay()
            if self._thread is None and not buffer.closed:
                self._start_thread()
        except Exception as exc:  # noqa: BLE001 - no thread can start while the interpreter exits
            self._internal_errors("export.put", exc)

    def _start_thread(self) -> None:
        with self._buffer.changed:
            if self._thread is None:
                consequence = f"No {self.name} are exported."
                thread = start_thread(self._run, f"fastapi-observe-{self.name}", consequence)
                if thread is None:  # tried again with the next item
                    return
                self._thread = thread
                self._undo_exit = register_at_exit(self, ExportQueue._close_at_exit)

    def _encode_slice(self) -> None:
        buffer = self._buffer
        items, encode = buffer.take_slice(), self._encoder.encode
        encoded = []
        for item in items:
            try:
                scope, data = encode(item)
                encoded.append((scope, data, 0))
            except Exception as exc:  # noqa: BLE001 - the other items are sent
                self._internal_errors("export.encode", exc)
        buffer.add(encoded, len(items))

    # Called by the sending thread

    def _run(self) -> None:
        attach(set_value(SUPPRESSION_KEY, True))  # noqa: FBT003 - exports are not traced
        while not self._buffer.closed:
            try:
                if self._wait_for_work():
                    if self._is_due(monotonic()):
                        self._encode_rest()
                    if self._seconds_until_send() == 0:
                        self._send()
            except Exception as exc:  # noqa: BLE001 - the thread must go on
                self._internal_errors("export.run", exc)
                sleep(ERROR_BACKOFF)
        self._transport.close()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to encode or to send. Returns False if the queue was closed."""
        buffer = self._buffer
        with buffer.changed:
            while not buffer.closed:
                now = monotonic()
                pause = self._seconds_until_send()
                if self._is_due(now) or pause == 0:
                    return True
                if pause is not None and self._flush_deadlines and now + pause >= max(self._flush_deadlines):
                    self._gave_up = True
                    buffer.changed.notify_all()
                if buffer.due_at is None:
                    # From here on `put` wakes this thread for a single item. An item put just before has not.
                    buffer.wake_at = 1
                    if buffer.raw:  # pragma: no cover - needs a `put` between two instructions
                        buffer.start_delay()
                        continue
                else:
                    pause = min(buffer.due_at - now, buffer.due_at - now if pause is None else pause)
                buffer.changed.wait(pause)
        return False

    def _is_due(self, now: float) -> bool:
        """Return whether everything that was put is to be sent now."""
        due_at = self._buffer.due_at
        return (due_at is not None and now >= due_at) or bool(self._flush_deadlines and self._buffer.raw)

    def _encode_rest(self) -> None:
        """Encode the items that did not fill a slice, and make everything due."""
        for _ in range(0, len(self._buffer.raw), ENCODE_BATCH):
            self._encode_slice()
        self._buffer.mark_due()
        self._warn_dropped()

    def _warn_dropped(self) -> None:
        dropped = self._buffer.dropped
        for reason in ("queue_full", "queue_bytes", "too_large", "internal_error"):
            if dropped[reason] > self._warned_drops[reason]:
                self._outage.warn(
                    reason,
                    f"Dropped {dropped[reason]} {self.name} since start ({reason}). "
                    f"Reasons, and what to do: {documentation_url('reference/metrics#export')}",
                )
        self._warned_drops = dropped.copy()

    def _seconds_until_send(self) -> float | None:
        """Return the seconds until a request may be sent: 0 for now, None if there is nothing to send."""
        buffer, outage = self._buffer, self._outage
        is_ready = buffer.due_count or self._flush_deadlines or len(buffer.ready) >= buffer.limits.batch
        if not buffer.ready or not is_ready:
            return None
        if self._flush_deadlines and not self._tried and not outage.retry_after_set:
            return 0  # each flush is worth one attempt, whatever the backoff
        return max(0, outage.retry_at - monotonic())

    def _send(self) -> None:
        buffer, outage = self._buffer, self._outage
        with buffer.changed:
            deadline = monotonic() + buffer.limits.timeout
            if self._flush_deadlines:
                self._tried = True
                deadline = min(deadline, max(self._flush_deadlines))
            # A probe is an empty request. It is valid OTLP and gets a response like any other.
            probe = outage.probing and not self._flush_deadlines
            batch = [] if probe else buffer.take_batch()
        started = perf_counter()
        try:
            result = self._transport.send(self._encoder.request(batch) if batch else b"", deadline)
        except Exception as exc:  # noqa: BLE001 - the thread must go on
            self._internal_errors("export.send", exc)
            result = ExportResult("internal_error", type(exc).__name__)
        with buffer.changed:
            buffer.durations.record(perf_counter() - started)
            buffer.apply_result(result)
            if not result.reason:
                self._gave_up = False
        if buffer.closed:
            return
        if result.reason:
            outage.record_failure(result, probe=probe)
        elif probe:
            outage.record_probe_reply()
        else:
            outage.record_success(buffer.dropped.total())
            if result.rejected:
                outage.warn(
                    "rejected",
                    f"The Collector at {outage.target} rejected {result.rejected} {self.name}; its log has the reason.",
                )
