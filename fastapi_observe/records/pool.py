"""`PoolState`: the state of a database connection pool at one moment."""

from __future__ import annotations

from typing import NamedTuple


class PoolState(NamedTuple):
    """Numbers of connections of one pool. None for a number that the pool does not report.

    `active` are in use, `idle` are available, `max` is the limit, `overflow` are connections beyond the pool's own
    size, `waiting` are callers that wait for a connection.
    """

    active: float | None = None
    idle: float | None = None
    max: float | None = None
    overflow: float | None = None
    waiting: float | None = None
