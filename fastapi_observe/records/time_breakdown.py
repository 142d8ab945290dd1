"""`Work`: where the time of one request went, and which statements it repeated."""

from __future__ import annotations

import threading
from operator import itemgetter
from typing import Any, Final, NamedTuple

AWAITED_KINDS: Final = frozenset({"database", "external"})
"""Kinds of operations that a request waits for."""

FIELD_PREFIXES: Final = {"pool": "pool", "database": "db", "external": "external"}
"""What a request waits for, the connections of a pool too, and how it is called where that is told."""

MIN_POOL_WAIT: Final = 0.001
"""Seconds from which on the wait for a connection is told of a request."""

MAX_STATEMENTS: Final = 256
"""Different statements of one request that are told apart."""

MAX_REPEATED_STATEMENTS: Final = 5
"""Repeated statements of one request that are told, the most frequent ones."""

AGGREGATE_AFTER: Final = 1000
"""Beginnings and ends that are gathered before they are added up."""

TimelineEvent = tuple[float, int, str, float, str]
"""When (`perf_counter`) something began (1) or ended (-1); of an end its kind, its seconds and what repeats it."""


class RepeatedStatement(NamedTuple):
    """A statement that one request sent again and again; `seconds` in all."""

    statement: str
    times: int
    seconds: float


class TimeBreakdown:
    """What the queries and calls of one request came to; gathered as they begin and end, added up when asked.

    `seconds` and `counts` add up by kind, those side by side too; `busy` are the seconds in which at least one was
    running.
    """

    __slots__ = ("_lock", "_running", "_since", "busy", "counts", "seconds", "statements", "steps")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self.steps: list[TimelineEvent] = []
        self.busy = 0.0
        self.counts = dict.fromkeys(FIELD_PREFIXES, 0)
        self.seconds = dict.fromkeys(FIELD_PREFIXES, 0.0)
        self.statements: dict[str, list[float]] = {}

    def begin(self, now: float) -> None:
        """Note that something begins."""
        self.steps.append((now, 1, "", 0.0, ""))

    def end(self, now: float, kind: str, seconds: float, repeats: str) -> None:
        """Note that it has ended."""
        self.steps.append((now, -1, kind, seconds, repeats))
        if len(self.steps) >= AGGREGATE_AFTER:
            self.aggregate()

    def waited(self, now: float, seconds: float) -> None:
        """Note a wait for a connection, which has ended."""
        self.begin(now - seconds)
        self.end(now, "pool", seconds, "")

    def aggregate(self) -> None:
        """Add up what was gathered."""
        with self._lock:
            gathered, self.steps = self.steps, []
            gathered.sort(key=itemgetter(0))
            for now, way, kind, seconds, repeats in gathered:
                if way > 0:
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
                    self._note(repeats, seconds)

    def _note(self, statement: str, seconds: float) -> None:
        found = self.statements.get(statement)
        if found is not None:
            found[0] += 1
            found[1] += seconds
            return
        if len(self.statements) >= MAX_STATEMENTS:  # what came once makes room
            self.statements = {text: sums for text, sums in self.statements.items() if sums[0] > 1}
        if len(self.statements) < MAX_STATEMENTS:
            self.statements[statement] = [1, seconds]

    def self_time(self, began: float, duration: float) -> float:
        """Return the seconds of a request in which nothing was running; `began` is a time of `perf_counter`."""
        busy = self.busy + (max(0.0, began + duration - self._since) if self._running else 0.0)
        return max(0.0, duration - busy)

    def as_fields(self, began: float, duration: float) -> dict[str, Any]:
        """Return where the time of a request went: milliseconds and number of what it waited for, and its own time."""
        facts: dict[str, Any] = {}
        for kind, name in FIELD_PREFIXES.items():
            if self.counts[kind]:
                facts[f"{name}_ms"] = round(self.seconds[kind] * 1000, 3)
                facts[f"{name}_count"] = self.counts[kind]
        if facts:
            facts["self_ms"] = round(self.self_time(began, duration) * 1000, 3)
        return facts

    def repeated(self, limit: int) -> list[RepeatedStatement]:
        """Return the statements that were sent more than `limit` times, the most frequent first."""
        sums = self.statements.items()
        found = [RepeatedStatement(text, int(many), seconds) for text, (many, seconds) in sums if many > limit]
        return sorted(found, key=lambda each: -each.times)[:MAX_REPEATED_STATEMENTS]
