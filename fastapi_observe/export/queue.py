"""The queue between a signal and its collector: many threads put items in, one thread of ours sends them.

Whoever fills a slice encodes it, right there: encoding in a thread of its own costs half as much again, for it makes
two threads take turns with the interpreter. So what waits is small, its bytes are known, and a collector that hangs
holds up nothing but the thread that sends.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastapi_observe.export.outage import CollectorOutage
from fastapi_observe.export.sender import Requests, Sender
from fastapi_observe.export.store import ENCODE_BATCH, ExportBuffer, QueueLimits
from fastapi_observe.internal.forks import ShutdownDeadline, register_at_exit, register_at_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.internal.errors import InternalErrors

PARTING: Final = 0.2
"""Seconds that a thread which was told to end may take for it."""


class Encoder(Requests, Protocol):
    """Knows the format of one signal."""

    def encode(self, item: Any, /) -> tuple[Any, bytes]:
        """Encode an item; return the group that it belongs to, and its bytes."""


class ExportQueue:
    """Takes items of one signal, encodes them and sends them to a collector; keeps the newest, counts the others.

    The thread starts with the first item, in a forked child with the child's first item. Every count is exact at every
    moment: produced = exported + dropped + queued. `budget` may be shared with other queues.
    """

    def __init__(
        self, name: str, encoder: Encoder, transport: Transport, limits: QueueLimits, faults: InternalErrors
    ) -> None:
        self.name = name
        self._encoder = encoder
        self._transport = transport
        self._limits = limits
        self._faults = faults
        self.budget = ShutdownDeadline()
        self._renew()
        register_at_fork(self, ExportQueue._begin_as_child)

    def _renew(self) -> None:
        self._store = ExportBuffer(self._limits)
        self._outage = CollectorOutage(self.name, self._transport.target)
        self._sender = Sender(
            self._store, self._encoder, self._transport, self._outage, self._encode_slice, self._faults
        )
        self._thread: threading.Thread | None = None
        self._undo_exit: Callable[[], None] | None = None

    def _begin_as_child(self) -> None:
        """Begin anew: what waits is the parent's to send."""
        self._transport.detach_after_fork()
        self._renew()

    def put(self, item: Any) -> None:
        """Take an item. Costs an append, for one item in SLICE the encoding of a slice; never waits for anybody."""
        store = self._store
        raw = store.raw
        raw.append(item)
        if len(raw) >= store.wake_at:
            self._react()

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
            store.drop_oldest()
            goal, lost = store.produced(), store.lost()
            if store.settled_count() >= goal:
                return True
        if self._thread is None:
            self._react()
        sent = self._sender.flush(goal, deadline) and store.lost() == lost
        left = goal - store.settled_count()
        if left > 0:
            self._outage.warn(
                "flush",
                f"could not send {left} {self.name} to {self._transport.target} in time; "
                "they are lost if the process ends now",
            )
        return sent

    def close(self, timeout: float | None = None) -> None:
        """Flush, for at most `timeout` seconds (None: as the settings say), then end; what is left counts as dropped.

        There is no second wait for a collector that took nothing since the last flush. A second call does nothing.
        """
        deadline = monotonic() + (self._limits.shutdown if timeout is None else timeout)
        store = self._store
        if not store.closed and not self._sender.gave_up:
            self.flush(max(0.0, deadline - monotonic()))
        with store.changed:
            if store.closed:
                return
            store.closed = True
            store.changed.notify_all()
        self._transport.abort()
        if self._thread is not None:
            self._thread.join(PARTING)
        store.abandon()
        if self._undo_exit is not None:
            self._undo_exit()

    def _close_at_exit(self) -> None:
        """Close within what the end of the app, and other queues, have left of the time."""
        self.close(self.budget.remaining(self._limits.shutdown))

    def _react(self) -> None:
        """Do what a new item calls for: start the thread, tell it that its pause has ended, or encode a slice."""
        store = self._store
        try:
            if store.closed:
                store.drop_late_items()
            elif len(store.raw) >= ENCODE_BATCH:
                self._encode_slice()
            else:
                store.begin()
            if self._thread is None and not store.closed:
                self._start()
        except Exception as exc:  # noqa: BLE001 - no thread starts while the interpreter ends
            self._faults("export.put", exc)

    def _start(self) -> None:
        with self._store.changed:
            if self._thread is None:
                thread = threading.Thread(target=self._sender.run, name=f"fastapi-observe-{self.name}", daemon=True)
                thread.start()
                self._thread = thread
                self._undo_exit = register_at_exit(self, ExportQueue._close_at_exit)

    def _encode_slice(self) -> None:
        store = self._store
        items = store.take_slice()
        entries = []
        for item in items:
            try:
                entries.append((*self._encoder.encode(item), 0))
            except Exception as exc:  # noqa: BLE001 - the others are sent all the same
                self._faults("export.encode", exc)
        store.add(entries, len(items))
