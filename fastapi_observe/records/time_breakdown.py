"""`TimeBreakdown`: the time of one request by what it waited for, and the statements that it repeated."""

from __future__ import annotations

import threading
from operator import itemgetter
from typing import Any, Final, NamedTuple

AWAITED_KINDS: Final = frozenset({"database", "external"})
"""Kinds of operations that count as waiting time of a request."""

FIELD_PREFIXES: Final = {"pool": "pool_wait", "database": "db", "external": "external"}
"""Prefix of the field names for each kind of waiting time."""

MIN_POOL_WAIT: Final = 0.001
"""Seconds from which a wait for a database connection counts as waiting time of a request."""

MAX_STATEMENTS: Final = 256
"""Different statements of one request that are counted."""

MAX_REPEATED_STATEMENTS: Final = 5
"""Repeated statements of one request that are reported, the most frequent first."""

AGGREGATE_AFTER: Final = 1000
"""Events of one request that are kept before they are aggregated."""

# A NamedTuple would be easier to read, but takes three times as long to create, twice for each query.
TimelineEvent = tuple[float, int, str, float, str]
"""Time (`perf_counter`), 1 for a start or -1 for an end; for an end also kind, seconds and repetition key."""


class RepeatedStatement(NamedTuple):
    """A statement that one request sent several times. `seconds` is the total."""

    statement: str
    times: int
    seconds: float


class TimeBreakdown:
    """The queries, external calls and pool waits of one request, recorded as events and aggregated at its end.

    `seconds` and `counts` are totals by kind; concurrent operations count each. `busy` is the time in seconds in which
    at least one operation was running.
    """

    __slots__ = ("_lock", "_running", "_since", "busy", "counts", "events", "seconds", "statements")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self.events: list[TimelineEvent] = []
        self.busy = 0.0
        self.counts = dict.fromkeys(FIELD_PREFIXES, 0)
        self.seconds = dict.fromkeys(FIELD_PREFIXES, 0.0)
        self.statements: dict[str, list[float]] = {}

    def begin(self, now: float) -> None:
        """Record the start of an operation."""
        self.events.append((now, 1, "", 0.0, ""))

    def end(self, now: float, kind: str, seconds: float, repetition_key: str) -> None:
        """Record the end of an operation."""
        self.events.append((now, -1, kind, seconds, repetition_key))
        if len(self.events) >= AGGREGATE_AFTER:
            self.aggregate()

    def record_pool_wait(self, now: float, seconds: float) -> None:
        """Record a wait for a connection that ended `now`."""
        self.begin(now - seconds)
        self.end(now, "pool", seconds, "")

    def aggregate(self) -> None:
        """Add the recorded events to the totals."""
        # Only aggregating needs the lock: appending to a list is atomic, so operations in threads do not wait.
        with self._lock:
            events, self.events = self.events, []
            events.sort(key=itemgetter(0))
            for now, direction, kind, seconds, repetition_key in events:
                if direction > 0:
                    if not self._running:
                        self._since = now
                    self._running += 1
                    continue
                self._running -= 1
                if not self._running:
                    self.busy += now - self._since
                self.counts[kind] += 1
                self.seconds[kind] += seconds
                if kind == "database":
                    self._count_statement(repetition_key, seconds)

    def _count_statement(self, statement: str, seconds: float) -> None:
        totals = self.statements.get(statement)
        if totals is not None:
            totals[0] += 1
            totals[1] += seconds
            return
        if len(self.statements) >= MAX_STATEMENTS:  # statements seen once make room
            self.statements = {text: totals for text, totals in self.statements.items() if totals[0] > 1}
        if len(self.statements) < MAX_STATEMENTS:
            self.statements[statement] = [1, seconds]

    def self_time(self, started: float, duration: float) -> float:
        """Return the seconds of a request in which no operation was running. `started` is a time of `perf_counter`."""
        busy = self.busy + (max(0.0, started + duration - self._since) if self._running else 0.0)
        return max(0.0, duration - busy)

    def as_fields(self, started: float, duration: float) -> dict[str, Any]:
        """Return the fields of the request line: milliseconds and number of operations by kind, and the self time."""
        fields: dict[str, Any] = {}
        for kind, prefix in FIELD_PREFIXES.items():
            if self.counts[kind]:
                fields[f"{prefix}_ms"] = round(self.seconds[kind] * 1000, 3)
                fields[f"{prefix}_count"] = self.counts[kind]
        if fields:
            fields["self_ms"] = round(self.self_time(started, duration) * 1000, 3)
        return fields

    def repeated(self, limit: int) -> list[RepeatedStatement]:
        """Return the statements that were sent more than `limit` times, the most frequent first."""
        repeated = [
            RepeatedStatement(text, int(times), seconds)
            for text, (times, seconds) in self.statements.items()
            if times > limit
        ]
        return sorted(repeated, key=lambda each: -each.times)[:MAX_REPEATED_STATEMENTS]
