"""The queue between a signal and its collector, and the two threads behind it: one encodes, one sends.

The caller's part is one append. What was appended is encoded at once, a few items at a time, so that it is small, its
bytes are known and nobody waits long for the interpreter; so a collector that hangs holds up the sending alone.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastapi_observe.signals.export_lifetime import at_exit, at_fork
from fastapi_observe.signals.export_outage import Outage
from fastapi_observe.signals.export_sender import Requests, Sender
from fastapi_observe.signals.export_store import SLICE, Limits, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.records.faults import Faults
    from fastapi_observe.signals.export_counts import Counts
    from fastapi_observe.signals.export_transport import Transport

GAP: Final = 0.0005
"""Seconds of sleep between two slices, in which other threads get the interpreter."""

MOST_RAW: Final = 3 * SLICE
"""Items that wait for the thread that encodes; who adds more encodes a slice: their bytes are not known yet."""

PARTING: Final = 0.2
"""Seconds that threads which were told to end may take for it."""


class Encoder(Requests, Protocol):
    """Knows the format of one signal."""

    def encode(self, item: Any, /) -> tuple[Any, bytes]:
        """Encode an item; return the group that it belongs to, and its bytes."""


class ExportQueue:
    """Takes items of one signal, encodes them and sends them to a collector; keeps the newest, counts the others.

    Threads start with the first item, in a forked child with the child's first item. Every count is exact at every
    moment: produced = exported + dropped + queued.
    """

    def __init__(self, name: str, encoder: Encoder, transport: Transport, limits: Limits, faults: Faults) -> None:
        self.name = name
        self._encoder = encoder
        self._transport = transport
        self._limits = limits
        self._faults = faults
        self._renew()
        at_fork(self, ExportQueue._begin_as_child)

    def _renew(self) -> None:
        self._store = Store(self._limits)
        self._raw = self._store.raw
        self._outage = Outage(self.name, self._transport.target)
        self._sender = Sender(self._store, self._encoder, self._transport, self._outage, self._faults)
        # The one queue of the standard library that `__del__` may use in the middle of itself.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._wake_at = 1
        self._asleep = False
        self._due: float | None = None
        self._threads: tuple[threading.Thread, ...] = ()
        self._undo_exit: Callable[[], None] | None = None

    def _begin_as_child(self) -> None:
        """Begin anew: what waits is the parent's to send."""
        self._transport.forget()
        self._renew()

    def put(self, item: Any) -> None:
        """Take an item. Costs an append, and never waits for anybody."""
        raw = self._raw
        raw.append(item)
        if len(raw) >= self._wake_at:
            self._rouse()

    def counts(self) -> Counts:
        """Read every count."""
        return self._store.counts()

    def flush(self, timeout: float) -> bool:
        """Send what has been put so far, for at most `timeout` seconds; tell whether all of it went.

        Returns sooner if the collector fails and the next attempt would be too late.
        """
        deadline = monotonic() + timeout
        store = self._store
        with store.changed:
            store.shed()
            goal, lost = store.produced(), store.lost()
            if store.settled() >= goal:
                return True
        self._rouse()
        self._wake.put(None)
        return self._sender.flush(goal, deadline) and store.lost() == lost

    def close(self, timeout: float | None = None) -> None:
        """Flush, for at most `timeout` seconds (None: as the settings say), then end; what is left counts as dropped.

        There is no second wait for a collector that took nothing since the last flush. A second call does nothing.
        """
        deadline = monotonic() + (self._limits.shutdown if timeout is None else timeout)
        store = self._store
        if not store.closed and not self._sender.hopeless:
            self.flush(max(0.0, deadline - monotonic()))
        with store.changed:
            if store.closed:
                return
            store.closed = True
            store.changed.notify_all()
        self._wake.put(None)
        self._transport.abort()
        end = min(max(deadline, monotonic() + PARTING / 2), monotonic() + PARTING)
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))
        self._wake_at = 0
        store.abandon()
        if self._undo_exit is not None:
            self._undo_exit()

    def _rouse(self) -> None:
        store = self._store
        try:
            if store.closed:
                store.refuse_raw()
                return
            if not self._threads:
                self._start()
            if self._asleep:
                self._asleep = False
                self._wake.put(None)
            if len(self._raw) >= MOST_RAW:
                self._encode_slice()
        except Exception as exc:  # noqa: BLE001 - no thread starts while the interpreter ends
            self._faults("export.put", exc)

    def _start(self) -> None:
        with self._store.changed:
            if self._threads:
                return
            self._undo_exit = at_exit(self, ExportQueue.close)
            loops = (("encode", self._encode), ("export", self._sender.run))
            threads = tuple(
                threading.Thread(target=loop, name=f"fastapi-observe-{verb}-{self.name}", daemon=True)
                for verb, loop in loops
            )
            for thread in threads:
                thread.start()
            self._threads = threads

    # The thread that encodes

    def _encode(self) -> None:
        store = self._store
        while not store.closed:
            try:
                self._sleep()
                if self._raw and self._due is None:
                    self._due = monotonic() + self._limits.delay
                while self._raw and not store.closed:
                    self._encode_slice()
                    if self._raw and not self._sender.flushing:
                        sleep(GAP)
                self._release()
            except Exception as exc:  # noqa: BLE001 - the thread must live on
                self._faults("export.encode", exc)
                sleep(GAP)

    def _sleep(self) -> None:
        """Wait for a slice's worth of items, or until those that wait are due; without any, for the first."""
        wanted = 1 if self._due is None else SLICE
        self._asleep = True
        self._wake_at = wanted
        if len(self._raw) < wanted:
            left = None if self._due is None else max(0.0, self._due - monotonic())
            with suppress(Empty):
                self._wake.get(timeout=left)
        self._asleep = False
        self._wake_at = 0 if self._store.closed else MOST_RAW

    def _encode_slice(self) -> None:
        store = self._store
        items = store.take_slice()
        entries = []
        for item in items:
            try:
                entries.append((*self._encoder.encode(item), 0))
            except Exception as exc:  # noqa: BLE001 - the others are sent all the same
                self._faults("export.encode", exc)
        before = store.lost()
        store.add(entries, len(items))
        if store.lost() > before:
            self._tell_lost()
        if len(store.ready) >= self._limits.batch or self._sender.flushing:
            with store.changed:
                store.changed.notify_all()

    def _tell_lost(self) -> None:
        for reason in ("queue_full", "bytes", "too_large", "internal_error"):
            if number := self._store.dropped[reason]:
                self._outage.tell(reason, f"has dropped {number} {self.name} so far: {reason}")

    def _release(self) -> None:
        """Have everything sent once the oldest item is due."""
        store = self._store
        if self._due is not None and (self._sender.flushing or monotonic() >= self._due):
            self._due = None
            with store.changed:
                store.released = len(store.ready)
                store.changed.notify_all()
