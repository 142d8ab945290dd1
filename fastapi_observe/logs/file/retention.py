"""What is kept of rotated log files: number, age and total size; and the work on them, piece by piece."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.logs.file.compression import compress
from fastapi_observe.logs.file.folder import open_file, unsafe_reason
from fastapi_observe.logs.file.lock import LOCKS, is_same_file, open_append, truncate_torn_line, try_lock
from fastapi_observe.logs.file.names import AGES, SIZES, parse_amount
from fastapi_observe.logs.file.opening import OWN_LINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi_observe.logs.file.names import LogFileNames

SHARE: Final = 4
"""A file is rotated at the latest when it has this part of the total size, so that others can be removed instead."""


MAX_PROCESS_ID: Final = 2**22
"""The largest id of a process that Linux can be set to; other systems have smaller ones."""


class Retention(NamedTuple):
    """What is kept: the newest `files`, those younger than `age` seconds, `size` bytes in all, all at once."""

    files: int | None = None
    age: float | None = None
    size: int | None = None


def parse_retention(text: str | None) -> Retention | None:
    """Read `10 files`, `7 days`, `1 GB` or several with commas; None: keep all. Raises `ValueError` for others."""
    if text is None:
        return None
    found: dict[str, float] = {}
    for each in text.split(","):
        number, unit = parse_amount(each)
        if unit in {"file", "files"} and number == int(number):
            kind, value = "files", number
        elif unit in AGES and number > 0:
            kind, value = "age", number * AGES[unit]
        elif unit in SIZES and number > 0:
            kind, value = "size", number * SIZES[unit]
        else:
            kind, value = "", 0.0
        if not kind or kind in found:
            raise ValueError(
                f"log_retention: got {text!r}, accepts a number such as '10 files', an age such as '7 days', "
                "a size such as '1 GB', or several with commas, each once"
            )
        found[kind] = value
    files, size = found.get("files"), found.get("size")
    return Retention(None if files is None else int(files), found.get("age"), None if size is None else int(size))


class RotatedFile(NamedTuple):
    """A rotated file."""

    stamp: str
    path: Path
    is_compressed: bool
    size: int
    changed: float


class RetentionManager:
    """Keeps the rotated files of one log: removes, compresses, adopts those of dead processes.

    Several processes may do so at once: whoever is second finds nothing to do.
    """

    def __init__(self, names: LogFileNames, retention: Retention | None, compresses: bool) -> None:  # noqa: FBT001 - its one call names it
        self._names = names
        self._retention = retention or Retention()
        self._compresses = compresses and LOCKS  # Windows renames no file that is open
        self._others = 0

    @property
    def largest(self) -> int | None:
        """Bytes at which a file is rotated whatever the settings say about rotation."""
        size = self._retention.size
        return None if size is None else max(1, size // SHARE)

    def measure(self, active: Path) -> None:
        """Take in how much there is beside the file that is written to, and what compression may need meanwhile."""
        if self._retention.size is not None:
            self._others = self._bytes_beside(active)

    def make_room(self, active: Path, needed: int) -> bool:
        """Remove the oldest files until `needed` bytes in `active` are within the total size; tell whether they are."""
        limit = self._retention.size
        if limit is None or self._others + needed <= limit:
            return True
        self.measure(active)
        while self._others + needed > limit and self.remove_oldest(active.parent):
            self.measure(active)
        return self._others + needed <= limit

    def remove_oldest(self, folder: Path) -> bool:
        """Remove the oldest rotated file; tell whether there was one."""
        for each in self._rotated(folder):
            with suppress(OSError):
                each.path.unlink()
                return True
        return False

    def work(self, active: Path) -> Iterator[None]:
        """Do everything there is to do, in pieces."""
        folder = active.parent
        if not self._names.shared:
            for path, process in self._files_of_others(active):
                if LOCKS and not _is_alive(process):
                    self._adopt(path)
                    yield
        self._remove_old(folder)
        if self._compresses:
            for each in self._rotated(folder):
                if not each.is_compressed:
                    yield from compress(each.path, self._names.part(folder))
        yield
        self._remove_old(folder)

    def _rotated(self, folder: Path) -> list[RotatedFile]:
        """List the rotated files, oldest first; what a stranger may have put there is none of them."""
        found = []
        home = folder.stat() if hasattr(os, "geteuid") else None
        for path in folder.iterdir():
            name = self._names.rotated(path.name)
            if name is not None:
                with suppress(FileNotFoundError):
                    info = path.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode) and not unsafe_reason(info, home):
                        found.append(RotatedFile(name[0], path, name[1], info.st_size, info.st_mtime))
        return sorted(found)

    def _files_of_others(self, active: Path) -> Iterator[tuple[Path, int]]:
        """Find what other processes of ours write, or wrote, to: the name alone could be that of any file."""
        largest = _largest_process()
        for path in sorted(active.parent.iterdir()):
            process = self._names.process_id(path.name)
            if process is not None and process <= largest and path != active and _is_ours(path):
                yield path, process

    def _bytes_beside(self, active: Path) -> int:
        folder = active.parent
        rotated = self._rotated(folder)
        others = [path for path, _ in self._files_of_others(active)]
        # While a file is compressed it is there twice.
        soon = max((each.size for each in rotated if not each.is_compressed), default=0) if self._compresses else 0
        being = _size(self._names.part(folder))
        return sum(each.size for each in rotated) + sum(_size(path) for path in others) + max(soon, being)

    def _remove_old(self, folder: Path) -> None:
        files, age, _ = self._retention
        if files is None and age is None:
            return
        for rank, each in enumerate(reversed(self._rotated(folder))):
            too_many = files is not None and rank >= files
            too_old = age is not None and time() - each.changed > age
            if too_many or too_old:
                each.path.unlink(missing_ok=True)

    def _adopt(self, path: Path) -> None:
        """Rename a file that no living process holds, so that it is kept and removed like any rotated one."""
        descriptor = -1
        try:
            descriptor = open_append(path, create=False)
            if try_lock(descriptor) and is_same_file(descriptor, path):
                info = os.fstat(descriptor)
                truncate_torn_line(descriptor, info.st_size)
                path.rename(self._names.next_rotated(path, info.st_mtime))
        except FileNotFoundError:  # another process was quicker
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _largest_process() -> int:
    with suppress(OSError, ValueError), open("/proc/sys/kernel/pid_max", "rb") as file:  # noqa: PTH123 - no path of ours
        return int(file.read())
    return MAX_PROCESS_ID  # pragma: no cover - not Linux


def _is_alive(process: int) -> bool:
    """Tell whether another process has this id; of our own what the lock says holds."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return process != os.getpid()


def _is_ours(path: Path) -> bool:
    """Tell whether a file begins with a line of ours; one that cannot be read, or is a stranger's, does not."""
    try:
        descriptor = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return OWN_LINE.match(os.read(descriptor, 80)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
