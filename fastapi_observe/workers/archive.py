"""The archive: one file with the totals of all workers that have ended.

Its first line is JSON: `merged` names the workers whose files it contains, `index_bytes` is the size of the index, and
`crc` is the CRC-32 of everything after this line. Then come index and values, in the format of `workers/files.py`.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal import json
from fastapi_observe.workers.files import CELL_SIZE, HEADER_CELLS, NEW_FILE, OVERFLOW, READ_FLAGS, ValueFileReader

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHIVE_FILE: Final = "archive"

MAX_ENDED_LABEL_SETS: Final = 2000
"""Label sets that the archive keeps of each metric, unless the settings say otherwise."""

Totals = dict[tuple[bytes, tuple[str, ...]], list[float]]
"""Cells by family (its description, as JSON) and label values."""


class Archive:
    """The archive of a directory.

    The file is replaced as a whole and names the workers that it contains. So a reader counts each worker once, from
    its own files or from the archive, even if a process is killed after replacing the archive and before removing the
    files. Of each metric at most `max_label_sets` are kept, since the number of ended workers has no limit.
    """

    def __init__(self, directory: Path, max_label_sets: int = MAX_ENDED_LABEL_SETS) -> None:
        self._max_label_sets = max_label_sets
        self._path = directory / ARCHIVE_FILE
        self.identity: tuple[int, int] | None = None
        self._reset()

    def _reset(self) -> None:
        self.reader = ValueFileReader(Path(ARCHIVE_FILE), 0)
        self.reader.live = False
        self.merged_files: frozenset[str] = frozenset()

    def changed(self) -> bool:
        """Return whether the file is another one than was read."""
        return self.identity != _identity(self._path)

    def is_removed(self) -> bool:
        """Return whether the file that was read is gone."""
        return self.identity is not None and _identity(self._path) is None

    def read(self) -> None:
        """Read the file, if there is one. An unreadable one counts as empty."""
        self.identity = _identity(self._path)
        self._reset()
        if self.identity is None:
            return
        try:
            with os.fdopen(os.open(self._path, READ_FLAGS), "rb") as file:
                self._parse(file.read())
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            self._reset()
            self.reader.unreadable = True

    def _parse(self, data: bytes) -> None:
        first, _, body = data.partition(b"\n")
        header = json.loads(first)
        if zlib.crc32(body) != header["crc"]:
            raise ValueError("damaged")
        self.merged_files = frozenset(header["merged"])
        index, values = body[: header["index_bytes"]], body[header["index_bytes"] :]
        self.reader.parse_index(index, len(values) // CELL_SIZE)
        self.reader.set_values(values)

    def merge(self, ended: Iterable[ValueFileReader], existing: frozenset[str]) -> None:
        """Add the totals of ended workers, and replace the file. The caller holds the lock of the directory.

        `existing` are the names of workers that still have files: those of them that were merged earlier must stay
        named in the archive. Raises OSError.
        """
        ended = list(ended)
        totals: Totals = {}
        for reader in (self.reader, *ended):
            _add(totals, reader, self._max_label_sets)
        index, values = _encode(totals)
        body = index + values
        merged = [*sorted(self.merged_files & existing), *(reader.name for reader in ended)]
        header = json.dumps({"merged": merged, "index_bytes": len(index), "crc": zlib.crc32(body)})
        temporary = self._path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, NEW_FILE, 0o600), "wb") as file:
            file.write(header + b"\n" + body)
        temporary.replace(self._path)
        self.read()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _add(totals: Totals, reader: ValueFileReader, max_label_sets: int) -> None:
    descriptions = [(json.dumps(family), str(family.get("archive_mode"))) for family in reader.families]
    # Samples of other collectors have no limit here: several of them belong to one label set, and must stay together.
    limited = [family.get("kind") != "samples" for family in reader.families]
    label_sets = Counter(family for family, _ in totals)
    for number, labels, offset, cell_count in reader.series:
        family, mode = descriptions[number]
        if mode == "drop":
            continue
        if limited[number] and label_sets[family] >= max_label_sets and (family, labels) not in totals:
            labels = (OVERFLOW,) * len(labels)  # noqa: PLW2901 - the overflow series counts it
        cells = list(reader.values[offset : offset + cell_count])
        before = totals.get((family, labels))
        if before is None:
            label_sets[family] += 1
        if before is None or len(before) != len(cells):
            totals[family, labels] = cells
        else:
            totals[family, labels] = MERGE_FUNCTIONS.get(mode, _sum)(before, cells)


def _sum(before: list[float], cells: list[float]) -> list[float]:
    return [one + other for one, other in zip(before, cells, strict=True)]


# All but `sum` are for pairs: a value, and the time when it was set (0 if it never was).
MERGE_FUNCTIONS: Final[dict[str, Any]] = {
    "sum": _sum,
    "max": lambda before, cells: max((before, cells), key=lambda pair: (pair[1] > 0, pair[0])),
    "min": lambda before, cells: min((before, cells), key=lambda pair: (pair[1] <= 0, pair[0])),
    "latest": lambda before, cells: max((before, cells), key=lambda pair: pair[1]),
}
"""How the cells of two workers become one, by the `archive_mode` of their family. `drop` keeps neither."""


def _encode(totals: Totals) -> tuple[bytes, bytes]:
    """Return index and values."""
    numbers: dict[bytes, int] = {}
    lines: list[bytes] = []
    values = array("d", bytes(CELL_SIZE * HEADER_CELLS))
    for (family, labels), cells in totals.items():
        if family not in numbers:
            numbers[family] = len(numbers)
            lines.append(b"[%d,%b]\n" % (numbers[family], family))
        lines.append(json.dumps((numbers[family], labels, len(values), len(cells))) + b"\n")
        values.extend(cells)
    return b"".join(lines), values.tobytes()
