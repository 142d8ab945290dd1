"""What one worker has in the directory of all: its files, the lock that says it lives, the pipe that it is asked by."""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from fastapi_observe.workers.directory import lock_file
from fastapi_observe.workers.files import NEW_FILE, ValueFileWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE_SUFFIXES: Final = (".keys", ".values", ".ask", ".exemplars", ".new", ".lock")
"""Endings of the files of one worker; what is without the first is not read, what has the last is not dead."""


class WorkerHandles:
    """The files of this process, made now; the lock is held until they are closed, or the process ends.

    `before` are files that others have removed, or that stand in parts: what they hold goes on in the new ones, which
    nobody reads until they are published. Raises OSError, and leaves nothing then.
    """

    def __init__(
        self, directory: Path, remove: Callable[[set[str]], None], before: WorkerHandles | None = None
    ) -> None:
        self.stem = directory / f"{os.getpid()}-{monotonic_ns()}"
        self.files: ValueFileWriter
        made: list[int] = []
        try:
            made.append(os.open(self.stem.with_suffix(".lock"), NEW_FILE, 0o600))
            lock_file(made[0])
            os.mkfifo(self.stem.with_suffix(".ask"), 0o600)
            made.append(os.open(self.stem.with_suffix(".ask"), os.O_RDWR | os.O_CLOEXEC))
            self.files = ValueFileWriter(self.stem, None if before is None else before.files)
        except BaseException:
            remove({self.stem.name})
            for descriptor in made:
                os.close(descriptor)
            raise
        self.lock, self.ask = made

    def is_in_place(self) -> bool:
        """Tell whether all files are still where they were made."""
        opened = [(self.lock, self.stem.with_suffix(".lock")), (self.ask, self.stem.with_suffix(".ask"))]
        return all(is_same_file(descriptor, path) for descriptor, path in (*opened, *self.files.opened()))

    def close(self) -> None:
        """Close the files."""
        self.files.close()
        for descriptor in (self.lock, self.ask):
            os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Tell whether an open file still stands where it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def pid_exists(pid: int) -> bool:
    """Tell whether there is such a process."""
    if pid <= 0:  # a name that is none of ours
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # pragma: no cover - somebody else's, so not the one we knew
        return False
    return True
