"""The thread that sends: when, how much, and what it does about a collector that fails."""

from __future__ import annotations

from collections import Counter
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

from fastapi_observe.export.store import ENCODE_BATCH
from fastapi_observe.export.transport import ExportResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.export.outage import CollectorOutage
    from fastapi_observe.export.store import EncodedItem, ExportBuffer
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.internal.errors import InternalErrors


ERROR_BACKOFF: Final = 0.05
"""Seconds of sleep after a fault of ours, so that one that repeats keeps no processor busy."""


class Requests(Protocol):
    """Puts encoded items together to a request."""

    def request(self, entries: list[EncodedItem], /) -> bytes:
        """Return the body of a request."""


class Sender:
    """Sends what is in a store, oldest first, until it is closed; then closes the connection."""

    def __init__(  # noqa: PLR0913, PLR0917 - whom it brings together
        self,
        store: ExportBuffer,
        requests: Requests,
        transport: Transport,
        outage: CollectorOutage,
        encode_slice: Callable[[], None],
        faults: InternalErrors,
    ) -> None:
        self.gave_up = False  # a flush need not wait any longer
        self._store = store
        self._requests = requests
        self._transport = transport
        self._outage = outage
        self._encode_slice = encode_slice
        self._faults = faults
        self._flushes: list[float] = []
        self._tried = False
        self._told_lost: Counter[str] = Counter()

    def flush(self, goal: int, deadline: float) -> bool:
        """Wait until `goal` items are settled, but not longer than it may help; tell whether they are."""
        store = self._store
        with store.changed:
            self._flushes.append(deadline)
            self._tried = self.gave_up = False
            store.changed.notify_all()
            try:
                while store.settled_count() < goal and not self.gave_up and not store.abandoned:
                    left = deadline - monotonic()
                    if left <= 0:
                        break
                    store.changed.wait(left)
            finally:
                self._flushes.remove(deadline)
            self.gave_up = store.settled_count() < goal
            return not self.gave_up

    def run(self) -> None:
        """Be the thread."""
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: FBT003 - what we send is not traced
        while not self._store.closed:
            try:
                if self._wait():
                    self._work()
            except Exception as exc:  # noqa: BLE001 - the thread must live on
                self._faults("export.run", exc)
                sleep(ERROR_BACKOFF)
        self._transport.close()

    def _work(self) -> None:
        if self._is_due(monotonic()):
            self._gather()
        if self._pause() == 0:
            self._send()

    def _wait(self) -> bool:
        """Wait until something is to be done; tell whether there is, or whether the queue has ended."""
        store = self._store
        with store.changed:
            while not store.closed:
                now = monotonic()
                pause = self._pause()
                if self._is_due(now) or pause == 0:
                    return True
                if pause is not None and self._flushes and now + pause >= max(self._flushes):
                    self.gave_up = True
                    store.changed.notify_all()
                if store.due is None:
                    store.wake_at = 1
                    if store.raw:  # pragma: no cover - put in the moment before that was known
                        store.begin()
                        continue
                else:
                    pause = min(store.due - now, store.due - now if pause is None else pause)
                store.changed.wait(pause)
        return False

    def _is_due(self, now: float) -> bool:
        """Tell whether everything that was put is to be sent now."""
        due = self._store.due
        return (due is not None and now >= due) or bool(self._flushes and self._store.raw)

    def _gather(self) -> None:
        """Encode what no full slice was made of, and have everything sent."""
        for _ in range(0, len(self._store.raw), ENCODE_BATCH):
            self._encode_slice()
        self._store.mark_due()
        self._warn_dropped()

    def _warn_dropped(self) -> None:
        lost = self._store.dropped
        for reason in ("queue_full", "bytes", "too_large", "internal_error"):
            if lost[reason] > self._told_lost[reason]:
                self._outage.warn(reason, f"has dropped {lost[reason]} {self._outage.items} so far: {reason}")
        self._told_lost = lost.copy()

    def _pause(self) -> float | None:
        """Return in how many seconds a request may be sent: 0 for now, None if there is nothing to send."""
        store, outage = self._store, self._outage
        if not store.ready or not (store.released or self._flushes or len(store.ready) >= store.limits.batch):
            return None
        if self._flushes and not self._tried and not outage.retry_after_set:
            return 0
        return max(0, outage.retry_at - monotonic())

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
            answer = ExportResult("internal", type(exc).__name__)
        with store.changed:
            store.durations.note(monotonic() - started)
            store.apply_result(answer)
            if not answer.reason:
                self.gave_up = False
        if store.closed:
            return
        if answer.reason:
            outage.record_failure(answer, probing=probing)
        elif probing:
            outage.record_probe_reply()
        else:
            outage.record_success(store.lost())
            if answer.rejected:
                outage.warn("rejected", f"had {answer.rejected} {outage.items} refused by {outage.target}")
