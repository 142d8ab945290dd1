"""The archive: one file that keeps what the workers that have ended had counted."""

from __future__ import annotations

import os
import zlib
from array import array
from collections import Counter
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastapi_observe.workers.files import DOUBLE_SIZE, HEADER, NEW_FILE, READ_FLAGS, ValueFileReader

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHIVE_FILE: Final = "archive"

MAX_ENDED_LABEL_SETS: Final = 2000
"""Label sets of one metric that are kept of those who have ended, unless the settings say another number."""

OVERFLOW: Final = "__overflow__"
"""Every label value of the series that takes what is beyond."""


class Archive:
    """The archive of a directory.

    It names the files that are folded into it: whoever finds one of them still there must not count it again. It is
    replaced as a whole, so a reader sees it before or after a fold, never in between. Of one metric it keeps `most`
    label sets: workers come and go for ever, each with label sets of its own. A file that somebody else removes is
    remembered; `born` are the files that its numbers began in, by which a memory of them is recognised.
    """

    def __init__(self, directory: Path, most: int = MAX_ENDED_LABEL_SETS) -> None:
        self._most = most
        self.reading = ValueFileReader(Path(ARCHIVE_FILE), 0)
        self.reading.living = False
        self.merged_files: frozenset[str] = frozenset()
        self.source_files: frozenset[str] = frozenset()
        self.identity: tuple[int, int] | None = None
        self._path = directory / ARCHIVE_FILE

    @property
    def missing(self) -> bool:
        """Whether there was a file that is gone."""
        return self.identity is None and bool(self.source_files)

    def changed(self) -> bool:
        """Tell whether another archive stands there than was read."""
        return self.identity != _identity(self._path)

    def read(self) -> None:
        """Read the file, if there is one; an unreadable one counts as empty."""
        self.identity = _identity(self._path)
        if self.identity is None:
            return
        try:
            with os.fdopen(os.open(self._path, READ_FLAGS), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        except OSError:
            data = b""
        self.reading = ValueFileReader(Path(ARCHIVE_FILE), 0)
        self.reading.living = False
        self.merged_files = self.source_files = frozenset()
        try:
            self._parse(data)
        except (ValueError, KeyError, TypeError):
            self.reading.unreadable = True

    def _parse(self, data: bytes) -> None:
        first, _, body = data.partition(b"\n")
        head = orjson.loads(first)
        if zlib.crc32(body) != head["crc"]:
            raise ValueError("damaged")
        split = head["keys"]
        self.merged_files, self.source_files = frozenset(head["folded"]), frozenset(head.get("born", ()))
        values = body[split:]
        self.reading.parse(body[:split], len(values) // DOUBLE_SIZE)
        self.reading.fill(values)

    def merge(self, dead: Iterable[ValueFileReader], still_there: frozenset[str]) -> None:
        """Add up what the dead have left, and replace the file. The caller holds the lock of the directory.

        `still_there` are the names of files that an earlier fold has counted and not removed. Raises OSError.
        """
        dead = list(dead)
        merged: dict[tuple[bytes, tuple[str, ...]], list[float]] = {}
        for reading in (self.reading, *dead):
            _merge(merged, reading, self._most)
        keys, values = _written(merged)
        body = keys + values
        folded = [*sorted(self.merged_files & still_there), *(reading.name for reading in dead)]
        born = sorted(self.source_files) or [f"{os.getpid()}-{monotonic_ns()}"]
        head = orjson.dumps({"folded": folded, "born": born, "keys": len(keys), "crc": zlib.crc32(body)})
        temporary = self._path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, NEW_FILE, 0o600), "wb") as file:
            file.write(head + b"\n" + body)
        temporary.replace(self._path)
        self.read()

    def recreate(self) -> Archive:
        """Return what stands in the place of the archive now."""
        archive = Archive(self._path.parent, self._most)
        archive.read()
        return archive

    def merge_archive(self, memory: Archive, still_there: frozenset[str]) -> None:
        """Go on with what another archive was, unless somebody has brought it here already. As `fold`."""
        if memory.source_files and not memory.source_files & self.source_files:
            self.source_files |= memory.source_files
            self.merge([memory.reading], still_there)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _merge(merged: dict[tuple[bytes, tuple[str, ...]], list[float]], reading: ValueFileReader, most: int) -> None:
    described = [(orjson.dumps(family), str(family.get("fold"))) for family in reading.families]
    # Samples of other collectors are several records of one label set: they are not ours to bound.
    bounded = [family.get("kind") != "samples" for family in reading.families]
    kept = Counter(family for family, _ in merged)
    for number, labels, at, count in reading.series:
        family, how = described[number]
        if how == "drop":
            continue
        if bounded[number] and kept[family] >= most and (family, labels) not in merged:
            labels = (OVERFLOW,) * len(labels)  # noqa: PLW2901 - it is counted there
        cells = list(reading.values[at : at + count])
        before = merged.get((family, labels))
        if before is None:
            kept[family] += 1
        if before is None or len(before) != len(cells):
            merged[family, labels] = cells
        else:
            merged[family, labels] = MERGE_FUNCTIONS.get(how, _sum)(before, cells)


def _sum(before: list[float], cells: list[float]) -> list[float]:
    return [one + other for one, other in zip(before, cells, strict=True)]


MERGE_FUNCTIONS: Final[dict[str, Any]] = {
    "sum": _sum,
    # A value, and when it was set (0: it never was).
    "max": lambda before, cells: max((before, cells), key=lambda pair: (pair[1] > 0, pair[0])),
    "min": lambda before, cells: min((before, cells), key=lambda pair: (pair[1] <= 0, pair[0])),
    "latest": lambda before, cells: max((before, cells), key=lambda pair: pair[1]),
}
"""How the cells of two processes become one, by the `fold` of their family; `drop` keeps none."""


def _written(merged: dict[tuple[bytes, tuple[str, ...]], list[float]]) -> tuple[bytes, bytes]:
    numbers: dict[bytes, int] = {}
    lines: list[bytes] = []
    values = array("d", bytes(DOUBLE_SIZE * HEADER))
    for (family, labels), cells in merged.items():
        if family not in numbers:
            numbers[family] = len(numbers)
            lines.append(b"[%d,%b]\n" % (numbers[family], family))
        lines.append(orjson.dumps((numbers[family], labels, len(values), len(cells))) + b"\n")
        values.extend(cells)
    return b"".join(lines), values.tobytes()
