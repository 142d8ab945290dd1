"""The files of one worker process: its values, doubles in shared memory, and the keys that say what they are."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STEP: Final = 65_536
"""Bytes that a file of values begins with; it then doubles, by `MOST_AT_ONCE` at most."""

MAX_READ_BYTES: Final = 1_048_576

MAX_RECORDS: Final = 100_000
"""Most records of one process: label sets that come and go must not fill the memory."""

HEADER: Final = 8
"""Doubles at the beginning of a file that belong to no record; the first counts the answers of the worker."""

DOUBLE_SIZE: Final = 8
"""Bytes of a value."""

NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
READ_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

Series = tuple[int, tuple[str, ...], int, int]
"""A record: the number of its family, its label values, where it begins and how many doubles it has."""


class ValueFileWriter:
    """What this process writes. The space is allocated before it is used, so that a full disk is an `OSError` here.

    A line of keys is written when the values it names are there already; a line that the disk did not take as a whole
    is taken back. With files from `before`, the new ones begin with their records; nobody sees them until `publish`.
    """

    def __init__(self, stem: Path, before: ValueFileWriter | None = None) -> None:
        self.stem = stem
        self._hidden = before is not None
        self._size = 0
        self._free: memoryview[float] = memoryview(b"").cast("d")
        self._free_at = 0
        self._families: dict[bytes, int] = {}
        self._records: dict[tuple[int, tuple[str, ...]], tuple[int, memoryview[float]]] = {}
        self._values = os.open(stem.with_suffix(".values"), NEW_FILE, 0o600)
        try:
            keys = stem.with_suffix(".new" if self._hidden else ".keys")
            self._keys = os.open(keys, NEW_FILE | os.O_APPEND, 0o600)
            try:
                self._begin(before)
            except OSError:
                os.close(self._keys)
                raise
        except OSError:
            os.close(self._values)
            raise

    def _begin(self, before: ValueFileWriter | None) -> None:
        self._grow(STEP)
        self.header = self._take(HEADER)[1]
        self._taken(HEADER)
        if before is not None:
            for family, labels, record in before.records():
                self.allocate(family, labels, record)

    def records(self) -> list[tuple[bytes, tuple[str, ...], list[float]]]:
        """Return all records as they are now: family, labels, values."""
        families = list(self._families)
        return [(families[number], labels, list(record)) for (number, labels), (_, record) in self._records.items()]

    def publish(self) -> None:
        """Have the others see what was copied. Raises OSError."""
        if self._hidden:
            self.stem.with_suffix(".new").rename(self.stem.with_suffix(".keys"))
            self._hidden = False

    def opened(self) -> list[tuple[int, Path]]:
        """Return the open files, and where each was made."""
        return [(self._keys, self.stem.with_suffix(".keys")), (self._values, self.stem.with_suffix(".values"))]

    def _grow(self, least: int) -> None:
        size = max(STEP, min(self._size, MAX_READ_BYTES), -(-least // STEP) * STEP)
        os.posix_fallocate(self._values, self._size, size)
        mapped = mmap.mmap(self._values, size, offset=self._size)
        self._free, self._free_at = memoryview(mapped).cast("d"), self._size // DOUBLE_SIZE
        self._size += size

    def _take(self, count: int) -> tuple[int, memoryview[float]]:
        """Return where the next `count` doubles stand, and the doubles."""
        if len(self._free) < count:
            self._grow(count * DOUBLE_SIZE)
        return self._free_at, self._free[:count]

    def _taken(self, count: int) -> None:
        self._free, self._free_at = self._free[count:], self._free_at + count

    def allocate(self, family: bytes, labels: tuple[str, ...], initial: Sequence[float]) -> list[float]:
        """Return the cells of a record, made now or before; `family` is the JSON that describes its family.

        What is made now begins with `initial`. Raises OSError when there is no space.
        """
        number = self._families.get(family, len(self._families))
        found = self._records.get((number, labels))
        if found is None:
            if len(self._records) >= MAX_RECORDS:
                raise OSError(f"there are {MAX_RECORDS} label sets already")
            at, record = self._take(len(initial))
            for index, value in enumerate(initial):
                record[index] = value
            line = orjson.dumps((number, labels, at, len(initial))) + b"\n"
            if number == len(self._families):
                line = b"[%d,%b]\n%b" % (number, family, line)
            try:
                self._write(line)
            except OSError:
                record[:] = memoryview(bytes(DOUBLE_SIZE * len(initial))).cast("d")
                raise
            self._taken(len(initial))
            self._families[family] = number
            found = self._records[number, labels] = at, record
        return cast("list[float]", found[1])

    def cell_offset(self, family: bytes, labels: tuple[str, ...]) -> int:
        """Return where the cells of a record begin. Raises KeyError when there is no such record."""
        return self._records[self._families[family], labels][0]

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._keys).st_size
        try:
            if os.write(self._keys, line) == len(line):
                return
        except OSError:
            os.ftruncate(self._keys, before)
            raise
        os.ftruncate(self._keys, before)
        raise OSError(f"no space for {len(line)} bytes of keys")

    def close(self) -> None:
        """Close the files; cells that somebody still has stay usable, and hold a descriptor until then (mmap)."""
        self._free = self.header = memoryview(bytes(DOUBLE_SIZE)).cast("d")
        self._records = {}
        os.close(self._keys)
        os.close(self._values)


class ValueFileReader:
    """What the files of one process say, read again at each `refresh`; parsed keys are kept.

    `unreadable` is set when something in the files made no sense; the rest is used all the same. Our `own` are read
    as they were opened, so that nobody can take them away.
    """

    def __init__(self, stem: Path, pid: int, own: ValueFileWriter | None = None) -> None:
        self.stem = stem
        self.pid = pid
        self.living = True
        self.own = own is not None
        self._keys: Path | int = stem.with_suffix(".keys")
        self._values: Path | int = stem.with_suffix(".values")
        if own is not None:
            (self._keys, _), (self._values, _) = own.opened()
        self.unreadable = False
        self.families: list[dict[str, Any]] = []
        self.series: list[Series] = []
        self.values: memoryview[float] = memoryview(b"").cast("d")
        self._at = 0
        self._extent = 0
        self._added: list[Series] = []

    @property
    def name(self) -> str:
        """The name that the files share."""
        return self.stem.name

    def refresh(self) -> None:
        """Read what has been added, and all values. Raises FileNotFoundError when the files are gone."""
        # First the keys: what they name is there, in a file that only grows.
        added = _read(self._keys, self._at)
        complete = added[: added.rfind(b"\n") + 1]
        size = _size(self._values) // DOUBLE_SIZE
        self.parse(complete, size)
        self._at += len(complete)
        self.fill(_read(self._values, 0, self._extent * DOUBLE_SIZE))

    def parse(self, lines: bytes, size: int) -> None:
        """Take lines of keys for a file of `size` doubles."""
        for line in lines.splitlines():
            try:
                self._take(orjson.loads(line), size)
            except (ValueError, TypeError, IndexError):
                self.unreadable = True

    def _take(self, entry: Any, size: int) -> None:
        if len(entry) == 2:  # noqa: PLR2004 - number and description
            number, family = entry
            if number != len(self.families) or not isinstance(family, dict):
                raise ValueError
            self.families.append(family)
            return
        number, labels, at, count = entry
        if not (0 <= number < len(self.families) and HEADER <= at <= at + count <= size and count > 0):
            raise ValueError
        self._added.append((number, tuple([str(label) for label in labels]), at, count))
        self._extent = max(self._extent, at + count)

    def fill(self, data: bytes) -> None:
        """Take the bytes of the values; what is missing of them counts as 0.

        Only now what `parse` has found is shown: whoever reads meanwhile finds the values of every series.
        """
        missing = self._extent * DOUBLE_SIZE - len(data)
        if missing > 0:
            self.unreadable = True
            data += bytes(missing)
        self.values = memoryview(data).cast("d")
        self.series += self._added
        self._added = []

    def answers(self) -> float:
        """Return how often the process has answered."""
        data = _read(self._values, 0, DOUBLE_SIZE)
        return float(memoryview(data).cast("d")[0]) if len(data) == DOUBLE_SIZE else 0.0


def _size(path: Path | int) -> int:
    return os.fstat(path).st_size if isinstance(path, int) else path.lstat().st_size


def _read(path: Path | int, start: int, count: int | None = None) -> bytes:
    """Read `count` bytes, or all, from `start` on."""
    descriptor = os.dup(path) if isinstance(path, int) else os.open(path, READ_FLAGS)
    try:
        wanted = max(0, os.fstat(descriptor).st_size - start) if count is None else count
        parts: list[bytes] = []
        while wanted > 0 and (part := os.pread(descriptor, wanted, start)):
            parts.append(part)
            wanted -= len(part)
            start += len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
