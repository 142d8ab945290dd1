"""What waits for export, and the count of what became of everything else; exact, whoever asks and when."""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.export.counts import Counts, Durations

if TYPE_CHECKING:
    from fastapi_observe.export.transport import ExportResult

ENCODE_BATCH: Final = 16
"""Items that are encoded in one go: enough to be cheap, few enough that nobody waits for it."""

MAX_BODY_BYTES: Final = 4_194_304
"""Bytes of one request before compression: what gRPC and collectors take without being told to."""

MAX_ATTEMPTS: Final = 2
"""Requests without an answer that an item may be part of: one that breaks the collector must not block the others."""

MAX_DEFERRAL: Final = 300.0
"""Seconds for which a batch is sent again to a collector that asks for that each time, and takes no other."""

EncodedItem = tuple[Any, bytes, int]
"""The group of an encoded item, its bytes, and how many requests without an answer it was part of."""


class QueueLimits(NamedTuple):
    """What a queue may hold and how long things may take: items, bytes, seconds."""

    items: int
    bytes: int
    batch: int
    delay: float
    timeout: float
    shutdown: float


class ExportBuffer:
    """Items on their way: raw, encoded, being sent. The oldest are dropped where a limit is passed.

    `raw` may be appended to by anyone at any time; all else is done under `changed`, whose holder may take it again: an
    item may come from `__del__` in the middle of ourselves.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.changed = threading.Condition(threading.RLock())
        self.raw: deque[Any] = deque()
        self.ready: deque[EncodedItem] = deque()
        self.sending: list[EncodedItem] = []
        self.due: float | None = None  # when everything is to be sent
        self.released = 0  # how many of `ready` are due
        self.wake_at = 1  # how many of `raw` call for a reaction
        self.closed = False
        self.abandoned = False
        self.dropped: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.durations = Durations()
        self._largest = min(MAX_BODY_BYTES, limits.bytes // 8)
        self._taken = self._encoding = self._bytes = self._exported = 0
        self._last_success: float | None = None
        self._put_off: float | None = None  # since when the collector asks for the oldest batch later

    def counts(self) -> Counts:
        """Read every count."""
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

    def produced(self) -> int:
        """Count what was ever put."""
        return self._taken + len(self.raw)

    def settled_count(self) -> int:
        """Count what was exported or dropped."""
        return self._exported + self.dropped.total()

    def lost(self) -> int:
        """Count what was dropped."""
        return self.dropped.total()

    def drop_oldest(self) -> None:
        """Drop the oldest until the limits hold."""
        with self.changed:
            excess = len(self.raw) + len(self.ready) - self.limits.items
            while self.ready and (excess > 0 or self._bytes > self.limits.bytes):
                self._bytes -= len(self.ready.popleft()[1])
                self.dropped["queue_full" if excess > 0 else "bytes"] += 1
                self.released = max(0, self.released - 1)
                excess -= 1
            for _ in range(min(excess, len(self.raw))):
                self.raw.popleft()
                self._taken += 1
                self.dropped["queue_full"] += 1

    def begin(self) -> None:
        """After a pause: what is put from now on is due together."""
        with self.changed:
            if self.abandoned:
                return
            self.wake_at = ENCODE_BATCH
            if self.due is None:
                self.due = monotonic() + self.limits.delay
                self.changed.notify_all()

    def mark_due(self) -> None:
        """Have everything sent."""
        with self.changed:
            self.due = None
            self.released = len(self.ready)

    def take_slice(self) -> list[Any]:
        """Take raw items to encode."""
        with self.changed:
            self.drop_oldest()
            items = [self.raw.popleft() for _ in range(min(ENCODE_BATCH, len(self.raw)))]
            self._taken += len(items)
            self._encoding += len(items)
            return items

    def add(self, entries: list[EncodedItem], number: int) -> None:
        """Add what became of a slice of `number` items; those that are missing could not be encoded."""
        with self.changed:
            if self.abandoned:
                return
            fit = [entry for entry in entries if len(entry[1]) <= self._largest]
            self._drop("internal_error", number - len(entries))
            self._drop("too_large", len(entries) - len(fit))
            self._encoding -= number
            self.ready.extend(fit)
            self._bytes += sum(len(entry[1]) for entry in fit)
            self.drop_oldest()
            if self.due is None:
                self.begin()
            if len(self.ready) - len(fit) < self.limits.batch <= len(self.ready):
                self.changed.notify_all()

    def take_batch(self) -> list[EncodedItem]:
        """Take the oldest encoded items, as many as one request may carry."""
        with self.changed:
            size = 0
            while self.ready and len(self.sending) < self.limits.batch:
                size += len(self.ready[0][1])
                if size > MAX_BODY_BYTES and self.sending:
                    break
                self.sending.append(self.ready.popleft())
            self.released = max(0, self.released - len(self.sending))
            return [*self.sending]

    def apply_result(self, answer: ExportResult) -> None:
        """Count what became of the batch taken last, or put it back."""
        with self.changed:
            if self.abandoned:
                return
            batch, self.sending = self.sending, []
            again: list[EncodedItem] = []
            if answer.reason:
                self.failures[answer.reason] += 1
                again = self._failed(batch, answer)
            elif batch:
                rejected = min(answer.rejected, len(batch))
                self._exported += len(batch) - rejected
                self._drop("rejected", rejected)
                self._last_success = time()
                self._put_off = None
            self.ready.extendleft(reversed(again))
            self.released += len(again)
            self._bytes += sum(len(entry[1]) for entry in again) - sum(len(entry[1]) for entry in batch)
            self.drop_oldest()
            self.changed.notify_all()

    def _failed(self, batch: list[EncodedItem], answer: ExportResult) -> list[EncodedItem]:
        """Drop what may not be sent again; return what may."""
        if self.closed:
            self._drop("shutdown", len(batch))
            return []
        if not answer.retry:
            self._drop("internal_error" if answer.reason == "internal" else "rejected", len(batch))
            return []
        if not answer.maybe_received or not batch:
            return batch
        if answer.retry_later:
            return self._later(batch)
        again = [(group, data, tries + 1) for group, data, tries in batch if tries + 1 < MAX_ATTEMPTS]
        self._drop("export_failed", len(batch) - len(again))
        return again

    def _later(self, batch: list[EncodedItem]) -> list[EncodedItem]:
        """Return a batch that the collector wants later, unless it has said so for PUT_OFF_FOR seconds."""
        now = monotonic()
        self._put_off = self._put_off or now
        if now - self._put_off < MAX_DEFERRAL:
            return batch
        self._put_off = None
        self._drop("export_failed", len(batch))
        return []

    def _drop(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] += number

    def drop_late_items(self) -> None:
        """Drop what was put after the end."""
        with self.changed:
            number = len(self.raw)
            for _ in range(number):
                self.raw.popleft()
            self._taken += number
            self._drop("shutdown", number)

    def abandon(self) -> None:
        """Drop everything that is left, and count nothing from now on but what is put."""
        with self.changed:
            self.abandoned = True
            self.wake_at = 0
            self.drop_late_items()
            self._drop("shutdown", self._encoding + len(self.ready) + len(self.sending))
            self.ready.clear()
            self.sending.clear()
            self._encoding = self._bytes = self.released = 0
            self.changed.notify_all()
