"""`Work`: where the time of one request went, and which statements it repeated."""

from __future__ import annotations

import threading
from operator import itemgetter
from typing import Any, Final, NamedTuple

COUNTED: Final = frozenset({"database", "external"})
"""Kinds of operations that a request waits for."""

NAMES: Final = {"pool": "pool", "database": "db", "external": "external"}
"""What a request waits for, the connections of a pool too, and how it is called where that is told."""

SHORTEST_WAIT: Final = 0.001
"""Seconds from which on the wait for a connection is told of a request."""

MOST_STATEMENTS: Final = 256
"""Different statements of one request that are told apart."""

MOST_REPEATED: Final = 5
"""Repeated statements of one request that are told, the most frequent ones."""

GATHERED: Final = 1000
"""Operations that are gathered before they are added up."""

Done = tuple[str, float, float, str]
"""An operation that has ended: its kind, when it began and ended (`perf_counter`), what repeats it."""


class Repeated(NamedTuple):
    """A statement that one request sent again and again; `seconds` in all."""

    statement: str
    times: int
    seconds: float


class Work:
    """What the queries and calls of one request came to; they are gathered as they end and added up when asked.

    `seconds` and `counts` add up by kind, those side by side too; `busy` are the seconds in which at least one was
    running.
    """

    __slots__ = ("_lock", "_until", "busy", "counts", "done", "seconds", "statements")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self.done: list[Done] = []
        self.busy = 0.0
        self.counts = dict.fromkeys(NAMES, 0)
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self.statements: dict[str, list[float]] = {}

    def add(self, done: Done) -> None:
        """Note an operation that has ended."""
        self.done.append(done)
        if len(self.done) >= GATHERED:
            self.sum_up()

    def sum_up(self) -> None:
        """Add up what was gathered."""
        with self._lock:
            gathered, self.done = self.done, []
            for kind, began, ended, repeats in sorted(gathered, key=itemgetter(1)):
                self.counts[kind] += 1
                self.seconds[kind] += ended - began
                if ended > self._until:
                    self.busy += ended - max(began, self._until)
                    self._until = ended
                if kind == "database":
                    self._note(repeats, ended - began)

    def _note(self, statement: str, seconds: float) -> None:
        found = self.statements.get(statement)
        if found is not None:
            found[0] += 1
            found[1] += seconds
        elif len(self.statements) < MOST_STATEMENTS:
            self.statements[statement] = [1, seconds]

    def own(self, duration: float) -> float:
        """Return the seconds of a request of `duration` in which it waited for nothing that was measured."""
        return max(0.0, duration - self.busy)

    def facts(self, duration: float) -> dict[str, Any]:
        """Return where the time of a request went: milliseconds and number of what it waited for, and its own time."""
        facts: dict[str, Any] = {}
        for kind, name in NAMES.items():
            if self.counts[kind]:
                facts[f"{name}_ms"] = round(self.seconds[kind] * 1000, 3)
                facts[f"{name}_count"] = self.counts[kind]
        facts["own_ms"] = round(self.own(duration) * 1000, 3)
        return facts

    def repeated(self, limit: int) -> list[Repeated]:
        """Return the statements that were sent more than `limit` times, the most frequent first."""
        found = [
            Repeated(text, int(many), seconds) for text, (many, seconds) in self.statements.items() if many > limit
        ]
        return sorted(found, key=lambda each: -each.times)[:MOST_REPEATED]
