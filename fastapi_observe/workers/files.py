"""Files of one worker process in the shared directory: their format, `ValueFileWriter` and `ValueFileReader`.

A worker is named `<pid>-<monotonic nanoseconds>`. Its files are this name with a suffix:

- `.lock`: locked while the process runs. The kernel releases the lock however the process ends.
- `.values`: cells, 8-byte doubles in native byte order. The first `HEADER_CELLS` belong to no series; cell 0 counts
  the replies to scrapes, the rest is unused.
- `.index`: JSON lines that describe the cells. Lines are only ever added. `[number, {...}]` describes a family, a
  metric with all its series; the families of a worker are numbered from 0. `[number, [label values], offset, count]` is
  a series of that family, whose cells are `count` doubles from `offset` on (in doubles).
- `.requests`: a named pipe. Other workers write a byte to have scrape-time values published.
- `.exemplars`: a list of `CellExemplar` as JSON, replaced as a whole when a scrape wants exemplars. While they are
  written they are in `.new`.

A description of a family is made and read by `metrics/shared`. Here only its `archive_mode` matters: what the archive
keeps of a worker that has ended, `sum`, `max`, `min`, `latest` or `drop`.
"""

from __future__ import annotations

import mmap
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from fastapi_observe.internal import json
from fastapi_observe.workers.locks import is_same_file, lock_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MIN_GROWTH: Final = 65_536
"""Bytes of a new value file. It doubles when it is full, by `MAX_GROWTH` at most."""

MAX_GROWTH: Final = 1_048_576

MAX_WRITTEN_SERIES: Final = 100_000
"""Series of one process. Limits its memory, since label sets that come and go are never removed from the file."""

HEADER_CELLS: Final = 8

REPLY_COUNT_CELL: Final = 0
"""The cell of the header that counts replies to scrapes."""

CELL_SIZE: Final = 8
"""Bytes of a cell."""

OVERFLOW: Final = "__overflow__"
"""Label value of the series that counts everything beyond a limit."""

NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
READ_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

# A worker is one whose `.index` exists, and has ended if its `.lock` is not locked. So the first suffix goes first, and
# the last one last: if the removal is interrupted, no reader finds a worker that lacks some of its files.
FILE_SUFFIXES: Final = (".index", ".values", ".requests", ".exemplars", ".new", ".lock")


class Series(NamedTuple):
    """A line of the index that describes a series."""

    family_number: int
    labels: tuple[str, ...]
    offset: int
    cell_count: int


class WrittenSeries(NamedTuple):
    """Cells of a series that this process writes, and their offset in the file."""

    offset: int
    cells: memoryview[float]


class ValueFileWriter:
    """Writes the values and the index of this process.

    Only this process writes the cells, through a memory map. The kernel keeps the pages if the process is killed, so
    the file has every increment. Readers may see the cells of a histogram at slightly different times, but never half
    of a double: an aligned 8-byte copy is one store.

    Space is allocated before it is mapped: a full disk is an `OSError` here, instead of a SIGBUS at a later increment.
    """

    def __init__(self, file_prefix: Path) -> None:
        self.file_prefix = file_prefix
        self._size = 0
        self._free: memoryview[float] = memoryview(b"").cast("d")
        self._free_offset = 0
        self._families: dict[bytes, int] = {}
        self._written: dict[tuple[int, tuple[str, ...]], WrittenSeries] = {}
        self.values_descriptor = os.open(file_prefix.with_suffix(".values"), NEW_FILE, 0o600)
        try:
            self.index_descriptor = os.open(file_prefix.with_suffix(".index"), NEW_FILE | os.O_APPEND, 0o600)
            try:
                self._grow(MIN_GROWTH)
            except OSError:
                os.close(self.index_descriptor)
                raise
        except OSError:
            os.close(self.values_descriptor)
            raise
        self.header = self._next_cells(HEADER_CELLS).cells
        self._advance(HEADER_CELLS)

    def is_in_place(self) -> bool:
        """Return whether both files are still where they were made."""
        return is_same_file(self.index_descriptor, self.file_prefix.with_suffix(".index")) and is_same_file(
            self.values_descriptor, self.file_prefix.with_suffix(".values")
        )

    def _grow(self, min_bytes: int) -> None:
        # Each growth is a map of its own: the maps before stay where they are, since series hold views into them.
        size = max(MIN_GROWTH, min(self._size, MAX_GROWTH), -(-min_bytes // MIN_GROWTH) * MIN_GROWTH)
        os.posix_fallocate(self.values_descriptor, self._size, size)
        mapped = mmap.mmap(self.values_descriptor, size, offset=self._size)
        self._free, self._free_offset = memoryview(mapped).cast("d"), self._size // CELL_SIZE
        self._size += size

    def _next_cells(self, count: int) -> WrittenSeries:
        if len(self._free) < count:
            self._grow(count * CELL_SIZE)
        return WrittenSeries(self._free_offset, self._free[:count])

    def _advance(self, count: int) -> None:
        self._free, self._free_offset = self._free[count:], self._free_offset + count

    def allocate(self, description: bytes, labels: tuple[str, ...], initial: Sequence[float]) -> list[float]:
        """Return the cells of a series. `description` is that of its family, as JSON.

        New cells start with `initial`; existing ones are returned as they are. Raises OSError if there is no space.
        """
        number = self._families.get(description, len(self._families))
        series = self._written.get((number, labels))
        if series is None:
            if len(self._written) >= MAX_WRITTEN_SERIES:
                raise OSError(f"there are already {MAX_WRITTEN_SERIES} label sets")
            series = self._next_cells(len(initial))
            for index, value in enumerate(initial):
                series.cells[index] = value
            line = json.dumps((number, labels, series.offset, len(initial))) + b"\n"
            if number == len(self._families):
                line = b"[%d,%b]\n%b" % (number, description, line)
            # The index comes last: a reader that finds the line finds the values too. If it cannot be written, the
            # cells are cleared, because the next series gets them.
            try:
                self._write_index(line)
            except OSError:
                series.cells[:] = memoryview(bytes(CELL_SIZE * len(initial))).cast("d")
                raise
            self._advance(len(initial))
            self._families[description] = number
            self._written[number, labels] = series
        return cast("list[float]", series.cells)

    def cell_offset(self, description: bytes, labels: tuple[str, ...]) -> int:
        """Return the offset of the cells of a series, in doubles. Raises KeyError if there is no such series."""
        return self._written[self._families[description], labels].offset

    def _write_index(self, line: bytes) -> None:
        before = os.fstat(self.index_descriptor).st_size
        try:
            if os.write(self.index_descriptor, line) == len(line):
                return
        except OSError:
            os.ftruncate(self.index_descriptor, before)
            raise
        os.ftruncate(self.index_descriptor, before)
        raise OSError(f"no space for {len(line)} bytes of the index")

    def close(self) -> None:
        """Close the files. Cells that are still referenced stay usable, and keep the map (and a descriptor) open."""
        self._free = self.header = memoryview(bytes(CELL_SIZE)).cast("d")
        self._written = {}
        os.close(self.index_descriptor)
        os.close(self.values_descriptor)


class WorkerHandles:
    """All open files of this process. The lock is held until they are closed or the process ends.

    Raises OSError if they cannot be made, and leaves none of them then.
    """

    def __init__(self, directory: Path) -> None:
        self.file_prefix = directory / f"{os.getpid()}-{monotonic_ns()}"
        self.files: ValueFileWriter
        made: list[int] = []
        try:
            # The lock comes first: files without a lock on them are those of a worker that has ended.
            made.append(os.open(self.file_prefix.with_suffix(".lock"), NEW_FILE, 0o600))
            lock_file(made[0])
            os.mkfifo(self.file_prefix.with_suffix(".requests"), 0o600)
            # Opened for writing too, so that a reader sees no end of file when the last writer closes the pipe.
            made.append(os.open(self.file_prefix.with_suffix(".requests"), os.O_RDWR | os.O_CLOEXEC))
            self.files = ValueFileWriter(self.file_prefix)
        except BaseException:
            remove_worker_files(directory, [self.file_prefix.name])
            for descriptor in made:
                os.close(descriptor)
            raise
        self.lock, self.requests = made

    def is_in_place(self) -> bool:
        """Return whether all files are still where they were made."""
        return (
            is_same_file(self.lock, self.file_prefix.with_suffix(".lock"))
            and is_same_file(self.requests, self.file_prefix.with_suffix(".requests"))
            and self.files.is_in_place()
        )

    def close(self) -> None:
        """Close the files."""
        self.files.close()
        for descriptor in (self.lock, self.requests):
            os.close(descriptor)


class ValueFileReader:
    """Reads the files of one worker again at each `refresh`. Lines of the index that have been parsed are kept.

    `values` are all its cells, `series` say which of them belong together. `live` is whether the worker runs, `own`
    whether it is this process.
    `unreadable` is set when something in the files is invalid; the rest is used. The files of this process are read
    through the descriptors of `writer`, so that they can be read after they were removed.
    """

    def __init__(self, file_prefix: Path, pid: int, writer: ValueFileWriter | None = None) -> None:
        self.file_prefix = file_prefix
        self.pid = pid
        self.live = True
        self.own = writer is not None
        self.unreadable = False
        self.families: list[dict[str, Any]] = []
        self.series: list[Series] = []
        self.values: memoryview[float] = memoryview(b"").cast("d")
        self._index: Path | int = file_prefix.with_suffix(".index")
        self._values: Path | int = file_prefix.with_suffix(".values")
        if writer is not None:
            self._index, self._values = writer.index_descriptor, writer.values_descriptor
        self._bytes_parsed = 0
        self._cells_used = 0
        self._pending: list[Series] = []

    @property
    def name(self) -> str:
        """The name of the worker."""
        return self.file_prefix.name

    def refresh(self) -> None:
        """Read what was added to the index, and all values. Raises FileNotFoundError if the files are gone."""
        # Index before values: the value file only grows, so every cell that a line names is in it by then.
        added = _read(self._index, self._bytes_parsed)
        complete = added[: added.rfind(b"\n") + 1]
        self.parse_index(complete, _file_size(self._values) // CELL_SIZE)
        self._bytes_parsed += len(complete)
        self.set_values(_read(self._values, 0, self._cells_used * CELL_SIZE))

    def parse_index(self, lines: bytes, file_cells: int) -> None:
        """Parse lines of an index, for a value file with `file_cells` cells."""
        for line in lines.splitlines():
            try:
                self._parse_line(json.loads(line), file_cells)
            except (ValueError, TypeError, IndexError):
                self.unreadable = True

    def _parse_line(self, entry: Any, file_cells: int) -> None:
        if len(entry) == 2:  # noqa: PLR2004 - number and description
            number, description = entry
            if number != len(self.families) or not isinstance(description, dict):
                raise ValueError
            self.families.append(description)
            return
        number, labels, offset, count = entry
        if not (0 <= number < len(self.families) and HEADER_CELLS <= offset < offset + count <= file_cells):
            raise ValueError
        self._pending.append(Series(number, tuple([str(label) for label in labels]), offset, count))
        self._cells_used = max(self._cells_used, offset + count)

    def set_values(self, data: bytes) -> None:
        """Set the bytes of the values. Missing ones count as 0."""
        missing = self._cells_used * CELL_SIZE - len(data)
        if missing > 0:
            self.unreadable = True
            data += bytes(missing)
        self.values = memoryview(data).cast("d")
        # New series become visible only now: another thread that reads meanwhile finds the values of every series.
        self.series += self._pending
        self._pending = []

    def reply_count(self) -> float:
        """Return how often the worker has replied to scrapes."""
        data = _read(self._values, REPLY_COUNT_CELL * CELL_SIZE, CELL_SIZE)
        return float(memoryview(data).cast("d")[0]) if len(data) == CELL_SIZE else 0.0


def remove_worker_files(directory: Path, names: Iterable[str]) -> None:
    """Remove the files of workers, by name. Those that do not exist are skipped."""
    for name in names:
        for suffix in FILE_SUFFIXES:
            (directory / (name + suffix)).unlink(missing_ok=True)


def _file_size(path: Path | int) -> int:
    return os.fstat(path).st_size if isinstance(path, int) else path.lstat().st_size


def _read(path: Path | int, start: int, count: int | None = None) -> bytes:
    """Return `count` bytes, or all, from `start` on."""
    descriptor = os.dup(path) if isinstance(path, int) else os.open(path, READ_FLAGS)
    try:
        left = max(0, os.fstat(descriptor).st_size - start) if count is None else count
        parts: list[bytes] = []
        while left > 0 and (part := os.pread(descriptor, left, start)):
            parts.append(part)
            left -= len(part)
            start += len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
