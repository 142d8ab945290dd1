"""`OrderEvents`: tells every open WebSocket of this process what became of an order."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi_observe import TraceContext

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WAITING = 100
"""Events that wait for one slow listener; further ones are not told to it."""


@dataclass(frozen=True)
class OrderEvent:
    """What happened, and the trace in which it did."""

    order_id: int
    status: str
    trace: TraceContext | None


class OrderEvents:
    """Passes each event to all listeners."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[OrderEvent]] = set()

    def publish(self, order_id: int, status: str) -> None:
        """Tell all listeners; never waits for a slow one."""
        event = OrderEvent(order_id, status, TraceContext.current())
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait(event)

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[OrderEvent]]:
        """Yield a queue of the events from now on."""
        queue: asyncio.Queue[OrderEvent] = asyncio.Queue(MOST_WAITING)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
