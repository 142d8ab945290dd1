"""The thread that sends: when, how much, and what it does about a collector that fails."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

from fastapi_observe.signals.export_transport import Answer

if TYPE_CHECKING:
    from fastapi_observe.records.faults import Faults
    from fastapi_observe.signals.export_outage import Outage
    from fastapi_observe.signals.export_store import Entry, Store
    from fastapi_observe.signals.export_transport import Transport


class Requests(Protocol):
    """Puts encoded items together to a request."""

    def request(self, entries: list[Entry], /) -> bytes:
        """Return the body of a request."""


class Sender:
    """Sends what is in a store, oldest first, until it is closed; then closes the connection."""

    def __init__(self, store: Store, requests: Requests, transport: Transport, outage: Outage, faults: Faults) -> None:
        self.hopeless = False  # a flush need not wait any longer
        self._store = store
        self._requests = requests
        self._transport = transport
        self._outage = outage
        self._faults = faults
        self._flushes: list[float] = []
        self._tried = False

    @property
    def flushing(self) -> bool:
        """Whether somebody waits for a flush."""
        return bool(self._flushes)

    def flush(self, goal: int, deadline: float) -> bool:
        """Wait until `goal` items are settled, but not longer than it may help; tell whether they are."""
        store = self._store
        with store.changed:
            self._flushes.append(deadline)
            self._tried = self.hopeless = False
            store.changed.notify_all()
            try:
                while store.settled() < goal and not self.hopeless and not store.abandoned:
                    left = deadline - monotonic()
                    if left <= 0:
                        break
                    store.changed.wait(left)
            finally:
                self._flushes.remove(deadline)
            self.hopeless = store.settled() < goal
            return not self.hopeless

    def run(self) -> None:
        """Be the thread."""
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: FBT003 - what we send is not traced
        try:
            while self._wait():
                self._send()
        finally:
            self._transport.close()

    def _wait(self) -> bool:
        """Wait until something is to be sent; tell whether the queue goes on."""
        store, outage = self._store, self._outage
        with store.changed:
            while not store.closed:
                wait: float | None = None
                if store.ready and (store.released or self._flushes or len(store.ready) >= store.limits.batch):
                    wait = outage.retry_at - monotonic()
                    if wait <= 0 or (self._flushes and not self._tried and not outage.strict):
                        return True
                    if self._flushes and outage.retry_at >= max(self._flushes):
                        self.hopeless = True
                        store.changed.notify_all()
                store.changed.wait(wait)
        return False

    def _send(self) -> None:
        store, outage = self._store, self._outage
        with store.changed:
            started = monotonic()
            deadline = started + store.limits.timeout
            if self._flushes:
                self._tried = True
                deadline = min(deadline, max(self._flushes))
            # An empty request is valid and must be answered like any other: no items are spent on a dead collector.
            probing = outage.probes and not self._flushes
            batch = [] if probing else store.take_batch()
        try:
            answer = self._transport.send(self._requests.request(batch) if batch else b"", deadline)
        except Exception as exc:  # noqa: BLE001 - the thread must live on
            self._faults("export.send", exc)
            answer = Answer("internal", type(exc).__name__)
        with store.changed:
            store.durations.note(monotonic() - started)
            store.settle(answer)
            if not answer.reason:
                self.hopeless = False
        if store.closed:
            return
        if answer.reason:
            outage.failed(answer, probing=probing)
        elif probing:
            outage.answered()
        else:
            outage.succeeded(store.lost())
            if answer.rejected:
                outage.tell("rejected", f"had {answer.rejected} {outage.items} refused by {outage.target}")
