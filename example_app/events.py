"""`OrderEvents`: sends order events to every open WebSocket of this process."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_observe import TraceContext

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_QUEUED_EVENTS = 100
"""Events queued for one slow listener; further ones are dropped."""


@dataclass(frozen=True)
class OrderEvent:
    """A status change of an order, and the trace in which it happened."""

    order_id: int
    status: str
    trace: TraceContext | None


class OrderEvents:
    """Publishes each event to all listeners."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[OrderEvent]] = set()

    def publish(self, order_id: int, status: str) -> None:
        """Send an event to all listeners. Never waits for a slow one."""
        event = OrderEvent(order_id, status, TraceContext.current())
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait(event)

    def listeners(self) -> int:
        """Return the number of listeners."""
        return len(self._queues)

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[OrderEvent]]:
        """Yield a queue of all events from now on."""
        queue: asyncio.Queue[OrderEvent] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
