"""`TimeBreakdown`: the time of one request by what it waited for, and the statements that it repeated."""

from __future__ import annotations

import threading
from operator import attrgetter
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

AWAITED_KINDS: Final = frozenset({"database", "external"})
"""Kinds of operations that count as waiting time of a request."""

FIELD_PREFIXES: Final = {"pool": "pool_wait", "database": "db", "external": "external"}
"""Prefix of the field names for each kind of waiting time."""

MIN_POOL_WAIT: Final = 0.001
"""Seconds from which a wait for a database connection counts as waiting time of a request."""

MAX_COUNTED_STATEMENTS: Final = 256
"""Different statements of one request that are counted."""

MAX_REPEATED_STATEMENTS: Final = 5
"""Repeated statements of one request that are reported, the most frequent first."""

AGGREGATE_AFTER: Final = 100
"""Operations of one request that are held before they are aggregated."""

_NO_COUNTS: Final = dict.fromkeys(FIELD_PREFIXES, 0)
_NO_SECONDS: Final = dict.fromkeys(FIELD_PREFIXES, 0.0)
_STARTED: Final = attrgetter("started")


class Timed(Protocol):
    """An operation, as far as it is read here. `started` is a time of `perf_counter`, 0 before the start."""

    @property
    def kind(self) -> str:
        """`database`, `external` or `pool`."""

    @property
    def started(self) -> float:
        """The start."""

    @property
    def ended(self) -> bool:
        """Whether `duration` is known."""

    @property
    def duration(self) -> float:
        """The duration in seconds."""

    @property
    def repetition_key(self) -> str:
        """A value that repeated statements have in common."""


class PoolWait(NamedTuple):
    """A wait for a connection, which has ended."""

    started: float
    duration: float
    kind: str = "pool"
    ended: bool = True
    repetition_key: str = ""


class RepeatedStatement(NamedTuple):
    """A statement that one request sent several times. `seconds` is the total."""

    statement: str
    times: int
    seconds: float


class TimeBreakdown:
    """The queries, external calls and pool waits of one request, held as they start and aggregated at its end.

    `seconds` and `counts` are totals by kind; concurrent operations count each. `busy` is the time in seconds in which
    at least one operation was running.
    """

    __slots__ = ("_aggregate_after", "_lock", "_until", "busy", "counts", "operations", "seconds", "statements")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._aggregate_after = AGGREGATE_AFTER
        self.operations: list[Timed] = []
        self.busy = 0.0
        self.counts = _NO_COUNTS.copy()
        self.seconds = _NO_SECONDS.copy()
        self.statements: dict[str, list[float]] = {}

    def add(self, operation: Timed) -> None:
        """Add an operation that starts now."""
        operations = self.operations
        operations.append(operation)
        if len(operations) > self._aggregate_after:
            self.aggregate(perf_counter())

    def aggregate(self, until: float) -> None:
        """Add the operations that have ended to the totals, and the time until `until` to the busy time."""
        # Only aggregating needs the lock: changing a list is atomic, so operations in threads do not wait.
        with self._lock:
            batch = self.operations.copy()
            del self.operations[: len(batch)]
            if len(batch) > 1:
                batch.sort(key=_STARTED)
            # In local variables: they change with each operation.
            queries, query_seconds, busy, busy_until = 0, 0.0, self.busy, self._until
            for operation in batch:
                begin = operation.started
                if operation.ended:
                    kind, seconds = operation.kind, operation.duration
                    if kind == "database":
                        queries += 1
                        query_seconds += seconds
                        statement = operation.repetition_key
                        totals = self.statements.get(statement)
                        if totals is None:
                            self._add_statement(statement, seconds)
                        else:
                            totals[0] += 1
                            totals[1] += seconds
                    else:
                        self.counts[kind] += 1
                        self.seconds[kind] += seconds
                    end = begin + seconds
                    if end > until:  # noqa: PLR1730 - calling min() costs more, as max() below
                        end = until
                else:
                    self.operations.append(operation)
                    if not begin:  # another thread is just starting it
                        continue
                    end = until
                if begin < busy_until:  # noqa: PLR1730 - that time is counted already
                    begin = busy_until
                if end > begin:
                    busy += end - begin
                    busy_until = end
            self.counts["database"] += queries
            self.seconds["database"] += query_seconds
            self.busy, self._until = busy, busy_until
            self._aggregate_after = len(self.operations) + AGGREGATE_AFTER

    def _add_statement(self, statement: str, seconds: float) -> None:
        if len(self.statements) >= MAX_COUNTED_STATEMENTS:  # statements seen once make room
            self.statements = {text: totals for text, totals in self.statements.items() if totals[0] > 1}
        if len(self.statements) < MAX_COUNTED_STATEMENTS:
            self.statements[statement] = [1, seconds]

    def self_time(self, duration: float) -> float:
        """Return the seconds of a request in which no operation was running."""
        seconds = duration - self.busy
        return seconds if seconds > 0.0 else 0.0  # noqa: FURB136 - calling max() costs more

    def as_fields(self, duration: float) -> dict[str, Any]:
        """Return the fields of the request line: milliseconds and number of operations by kind, and the self time."""
        fields: dict[str, Any] = {}
        for kind, prefix in FIELD_PREFIXES.items():
            if self.counts[kind]:
                fields[f"{prefix}_ms"] = round(self.seconds[kind] * 1000, 3)
                fields[f"{prefix}_count"] = self.counts[kind]
        if fields:
            fields["self_ms"] = round(self.self_time(duration) * 1000, 3)
        return fields

    def repeated(self, limit: int) -> list[RepeatedStatement]:
        """Return the statements that were sent more than `limit` times, the most frequent first."""
        if self.counts["database"] <= limit:
            return []
        repeated = [
            RepeatedStatement(text, int(times), seconds)
            for text, (times, seconds) in self.statements.items()
            if times > limit
        ]
        return sorted(repeated, key=lambda each: -each.times)[:MAX_REPEATED_STATEMENTS]
