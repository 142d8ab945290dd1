"""Lines that standard output has not taken yet: a bounded number of them, the important ones the longest."""

from __future__ import annotations

from collections import deque
from typing import Final

MAX_LINES: Final = 10_000
MAX_BYTES: Final = 8 << 20
"""Most lines and most bytes that wait."""

QueuedLine = tuple[int, int, bytes]
"""A line that waits: its place in the order of all, its level's number, itself."""


class Backlog:
    """Keeps lines in order; where there is no room, those of lower levels go first, the oldest of them before others.

    `shed` counts the lines that went.
    """

    def __init__(self, lines: int = MAX_LINES, size: int = MAX_BYTES) -> None:
        self.shed = 0
        self.size = 0
        self._lines = lines
        self._size = size
        self._count = 0
        self._next = 0
        self._levels: dict[int, deque[QueuedLine]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, line: bytes, level: int) -> None:
        """Let a line wait, if there is room for it or something less important waits."""
        while self._count >= self._lines or (self.size + len(line) > self._size):
            lowest = min((each for each, waiting in self._levels.items() if waiting), default=level)
            self.shed += 1
            if lowest >= level:
                return
            self._leaves(self._levels[lowest].popleft())
        self._next += 1
        self._levels.setdefault(level, deque()).append((self._next, level, line))
        self._count += 1
        self.size += len(line)

    def take(self, size: int) -> list[QueuedLine]:
        """Take the first lines, of `size` bytes together, or one."""
        taken: list[QueuedLine] = []
        while self._count:
            first = min((waiting for waiting in self._levels.values() if waiting), key=lambda waiting: waiting[0][0])
            size -= len(first[0][2])
            if taken and size < 0:
                break
            taken.append(first.popleft())
            self._leaves(taken[-1])
        return taken

    def put_back(self, lines: list[QueuedLine]) -> None:
        """Let lines that were taken wait again, before all others."""
        for each in reversed(lines):
            self._levels[each[1]].appendleft(each)
            self._count += 1
            self.size += len(each[2])

    def _leaves(self, line: QueuedLine) -> None:
        self._count -= 1
        self.size -= len(line[2])
