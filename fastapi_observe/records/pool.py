"""`PoolState`: what a pool of database connections says of itself."""

from __future__ import annotations

from typing import NamedTuple


class PoolState(NamedTuple):
    """Connections of one pool at one moment; None for what the pool does not tell.

    `active` are in use, `idle` wait to be used, `max` is the most there may be, `overflow` are those beyond the
    pool's own size, `waiting` are the callers that wait for one.
    """

    active: float | None = None
    idle: float | None = None
    max: float | None = None
    overflow: float | None = None
    waiting: float | None = None
