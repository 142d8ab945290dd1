"""`ExportBuffer`: the items of one export queue from `put` until they are exported or dropped, and their counts."""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from fastapi_observe.export.counts import Counts, Durations
from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.export.transport import ExportResult

ENCODE_BATCH: Final = 16
"""Items encoded in one go: enough to be cheap, few enough not to delay the thread that encodes them."""

MAX_BODY_BYTES: Final = 4_194_304
"""Bytes of one request before compression: what gRPC and the Collector accept by default."""

MAX_ATTEMPTS: Final = 2
"""Requests without a response that an item may be part of: a batch that crashes the Collector must not block others."""

MAX_DEFERRAL: Final = 300.0
"""Seconds for which a batch is repeated while the Collector asks each time to send it later and accepts no other."""

EncodedItem = tuple[Any, bytes, int]
"""Scope of an encoded item, its bytes, and the number of requests without a response it was part of."""


DropReason = Literal[
    "queue_full", "queue_bytes", "too_large", "export_failed", "rejected", "shutdown", "internal_error"
]
"""Values of the label `reason` of `fastapi_observe_dropped_total`."""


class QueueLimits(NamedTuple):
    """Limits of a queue: `items` and `bytes` in total, items of one request (`batch`); the others in seconds."""

    items: int
    bytes: int
    batch: int
    delay: float
    timeout: float
    shutdown: float


# The states of an item, each with the call that moves it on. After a slash: the reasons for drops at this step.
#
#   raw -- take_slice --> encoding -- add --> ready -- take_batch --> sending -- apply_result --> exported
#   |                     |                   |  ^                    |  |
#   / queue_full          / internal_error    |  +------ retry -------+  / rejected, export_failed, internal_error
#                         / too_large         / queue_full, queue_bytes
#
# `abandon` moves all of them to dropped / shutdown. Every item is in exactly one state, so that at every moment
# produced = exported + dropped + queued, where queued = raw + encoding + ready + sending.


class ExportBuffer:
    """Holds the items of one queue. Drops the oldest where a limit is exceeded.

    `raw` may be appended to by any thread at any time: appending to a deque takes no lock. Everything else is read and
    written under `changed`, which is notified when a waiting thread may have something to do. Its lock is reentrant:
    a span may end in a finalizer that runs while this thread holds the lock.
    """

    def __init__(self, limits: QueueLimits, clock: Callable[[], float] = monotonic) -> None:
        self.limits = limits
        self.changed = threading.Condition(threading.RLock())
        self.raw: deque[Any] = deque()
        self.ready: deque[EncodedItem] = deque()
        self.sending: list[EncodedItem] = []
        self.due_at: float | None = None  # when all items are to be sent; None while there are none or all are due
        self.due_count = 0  # how many of `ready`, from the left, are to be sent without waiting for a full batch
        self.wake_at = 1  # length of `raw` at which `put` has to act; 0 after `abandon`, so that every item is counted
        self.closed = False  # no request is started any more
        self.abandoned = False  # everything is counted as dropped; results that arrive now are ignored
        self.dropped: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.durations = Durations()
        self._clock = clock
        self._max_item_bytes = min(MAX_BODY_BYTES, limits.bytes // 8)
        self._taken = self._encoding = self._bytes = self._exported = 0
        self._last_success: float | None = None
        self._deferred_since: float | None = None  # since when the Collector asks to send the oldest batch later

    def counts(self) -> Counts:
        """Return all counts, read at one moment."""
        with self.changed:
            self.drop_oldest()
            raw = len(self.raw)
            return Counts(
                produced=self._taken + raw,
                exported=self._exported,
                dropped=dict(self.dropped),
                queued=raw + self._encoding + len(self.ready) + len(self.sending),
                queued_bytes=self._bytes,
                failures=dict(self.failures),
                durations=(self.durations.cumulative(), self.durations.total),
                last_success=self._last_success,
            )

    def produced_count(self) -> int:
        """Return the number of items ever put."""
        return self._taken + len(self.raw)

    def settled_count(self) -> int:
        """Return the number of items exported or dropped."""
        return self._exported + self.dropped.total()

    def drop_oldest(self) -> None:
        """Drop the oldest items until the limits hold. A batch being sent is not dropped."""
        with self.changed:
            excess = len(self.raw) + len(self.ready) - self.limits.items
            while self.ready and (excess > 0 or self._bytes > self.limits.bytes):
                self._bytes -= len(self.ready.popleft()[1])
                self._drop("queue_full" if excess > 0 else "queue_bytes", 1)
                self.due_count = max(0, self.due_count - 1)
                excess -= 1
            for _ in range(min(excess, len(self.raw))):
                self.raw.popleft()
                self._taken += 1
                self._drop("queue_full", 1)

    def start_delay(self) -> None:
        """Make everything that is put from now on due after `limits.delay`. Does nothing if that is already so."""
        with self.changed:
            if self.abandoned:
                return
            self.wake_at = ENCODE_BATCH
            if self.due_at is None:
                self.due_at = self._clock() + self.limits.delay
                self.changed.notify_all()

    def mark_due(self) -> None:
        """Make every encoded item due now."""
        with self.changed:
            self.due_at = None
            self.due_count = len(self.ready)

    def take_slice(self) -> list[Any]:
        """Take up to `ENCODE_BATCH` items to encode. Each call is followed by one of `add`."""
        with self.changed:
            self.drop_oldest()
            items = [self.raw.popleft() for _ in range(min(ENCODE_BATCH, len(self.raw)))]
            self._taken += len(items)
            self._encoding += len(items)
            return items

    def add(self, encoded: list[EncodedItem], taken: int) -> None:
        """Add the encoded items of a slice of `taken` items. Those missing could not be encoded."""
        with self.changed:
            if self.abandoned:
                return
            accepted = [item for item in encoded if len(item[1]) <= self._max_item_bytes]
            self._drop("internal_error", taken - len(encoded))
            self._drop("too_large", len(encoded) - len(accepted))
            self._encoding -= taken
            self.ready.extend(accepted)
            self._bytes += _size(accepted)
            self.drop_oldest()
            if self.due_at is None:
                self.start_delay()
            if len(self.ready) - len(accepted) < self.limits.batch <= len(self.ready):
                self.changed.notify_all()

    def take_batch(self) -> list[EncodedItem]:
        """Take the oldest encoded items, as many as fit into one request. Each call is followed by `apply_result`."""
        with self.changed:
            size, ready, sending = 0, self.ready, self.sending
            for _ in range(min(len(ready), self.limits.batch - len(sending))):
                size += len(ready[0][1])
                if size > MAX_BODY_BYTES and sending:
                    break
                sending.append(ready.popleft())
            self.due_count = max(0, self.due_count - len(sending))
            return [*sending]

    def apply_result(self, result: ExportResult) -> None:
        """Count the batch taken last as exported or dropped, or put it back to the front."""
        with self.changed:
            if self.abandoned:
                return
            batch, self.sending = self.sending, []
            retried: list[EncodedItem] = []
            if result.reason:
                self.failures[result.reason] += 1
                retried = self._retried_items(batch, result)
            elif batch:
                rejected = min(result.rejected, len(batch))
                self._exported += len(batch) - rejected
                self._drop("rejected", rejected)
                self._last_success = time()
                self._deferred_since = None
            self.ready.extendleft(reversed(retried))
            self.due_count += len(retried)
            self._bytes += _size(retried) - _size(batch)
            self.drop_oldest()
            self.changed.notify_all()

    def _retried_items(self, batch: list[EncodedItem], result: ExportResult) -> list[EncodedItem]:
        """Return the items of a failed batch that may be sent again; count the others as dropped."""
        retried: list[EncodedItem] = []
        reason: DropReason = "export_failed"
        if self.closed:
            reason = "shutdown"
        elif not result.retry:
            reason = "internal_error" if result.reason == "internal_error" else "rejected"
        elif not result.maybe_received:  # an attempt that reached no Collector cannot have harmed one
            retried = batch
        elif result.retry_later:
            retried = self._deferred_items(batch)
        else:
            retried = [(scope, data, attempts + 1) for scope, data, attempts in batch if attempts + 1 < MAX_ATTEMPTS]
        self._drop(reason, len(batch) - len(retried))
        return retried

    def _deferred_items(self, batch: list[EncodedItem]) -> list[EncodedItem]:
        """Return a batch that the Collector asks to send later; nothing once it has asked for `MAX_DEFERRAL`."""
        if not batch:  # a probe
            return batch
        now = self._clock()
        if self._deferred_since is None:
            self._deferred_since = now
        if now - self._deferred_since < MAX_DEFERRAL:
            return batch
        self._deferred_since = None
        return []

    def _drop(self, reason: DropReason, number: int) -> None:
        if number:
            self.dropped[reason] += number

    def drop_late_items(self) -> None:
        """Drop what was put after the queue was closed."""
        with self.changed:
            number = len(self.raw)
            for _ in range(number):
                self.raw.popleft()
            self._taken += number
            self._drop("shutdown", number)

    def abandon(self) -> None:
        """Drop everything that is left. From now on items are only counted, as produced and dropped."""
        with self.changed:
            self.abandoned = True
            self.wake_at = 0
            self.drop_late_items()
            self._drop("shutdown", self._encoding + len(self.ready) + len(self.sending))
            self.ready.clear()
            self.sending.clear()
            self._encoding = self._bytes = self.due_count = 0
            self.changed.notify_all()


def _size(items: list[EncodedItem]) -> int:
    return sum(len(data) for _, data, _ in items)
