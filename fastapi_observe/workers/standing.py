"""Where a worker stands: it joins the directory of all, and joins again where others have removed what it had there."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.workers.archive import Archive
from fastapi_observe.workers.directory import lock_file, make_directory
from fastapi_observe.workers.presence import FILE_SUFFIXES, WorkerHandles, is_same_file, pid_exists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from fastapi_observe.workers.files import ValueFileReader, ValueFileWriter

JOIN_TIMEOUT: Final = 2.0
"""Seconds until a worker gives up waiting for the others to let it join."""

REJOIN_TIMEOUT: Final = 3.0
"""Seconds that a scrape waits for the others to notice that the directory was removed; they do within a tick."""

RETRY_INTERVAL: Final = 2.0
"""Seconds until what found no space is tried again."""

MSG_RESCAN: Final = b"l"
"""What a worker is asked for when somebody has joined: to look who is there."""

LOGGER: Final = logging.getLogger("fastapi_observe")


class WorkerBase:
    """A worker in the directory of all.

    The files are there from the beginning; the lock on one of them is held until the process ends, and the kernel
    gives it up however that happens. Files that somebody else removes are made again, with what they held, and
    `rebinders` are called: their cells stand in the new ones now. `answering` is held while numbers move into files.
    """

    def __init__(self, directory: Path, fault: Callable[[str, BaseException], None], most: int) -> None:
        self.directory = directory
        self.on_files_moved: list[Callable[[], None]] = []
        self._archive = Archive(directory, most)
        self._readings: dict[str, ValueFileReader] = {}
        self._kept: dict[str, ValueFileReader] = {}  # whose files were removed while they live: as we knew them
        self._peers: set[int] = set()
        self._awaited = 0.0
        self._reading = threading.Lock()
        self._fault = fault
        self.publish_lock: AbstractContextManager[Any] = threading.Lock()
        self._writing = threading.RLock()
        self._moving = threading.Lock()
        self._gone = self._leaving = False
        self._again = 0.0
        self._outdated: list[WorkerHandles] = []
        self._join(None)

    @property
    def file_prefix(self) -> Path:
        """What the names of our files begin with."""
        return self._here.stem

    @property
    def _own(self) -> ValueFileWriter:
        return self._here.files

    @property
    def _ask(self) -> int:
        return self._here.ask

    def _join(self, before: WorkerHandles | None) -> None:
        deadline = monotonic() + JOIN_TIMEOUT
        while True:
            make_directory(self.directory)
            # Under the lock, since files without a lock on them are those of the dead.
            with self._locked(max(0.0, deadline - monotonic())) as got:
                if got:
                    self._make_files(before)
                    return
            if monotonic() >= deadline:
                raise OSError(f"{self.directory} is locked by a process that does not go on")

    def _make_files(self, before: WorkerHandles | None) -> None:
        if before is None:
            self._here = WorkerHandles(self.directory, self._remove_files)
            for name in self._names():  # they must know of us before they are asked
                with suppress(OSError):
                    write_pipe((self.directory / name).with_suffix(".ask"), MSG_RESCAN)
            return
        with self._reading:
            archive = self._archive.recreate()
            archive.merge_archive(self._archive, self._there())
            self._archive = archive
        with self._writing:  # what is allocated from here on is allocated there
            here = WorkerHandles(self.directory, self._remove_files, before)
            try:
                self._remove_files({before.stem.name})
                before.stem.with_suffix(".moved").touch(0o600)
                here.files.publish()
            except OSError:
                self._remove_files({here.stem.name})
                here.close()
                raise
            self._here = here

    def restore_files(self) -> bool:
        """Make our files again if somebody has removed them; returns whether they stand. Never raises OSError."""
        with self._moving:
            if self._here.is_in_place():
                self._gone = False
                return True
            if monotonic() < self._again and not self._leaving:
                return False
            try:
                self._move()
            except OSError as exc:
                self._again = monotonic() + RETRY_INTERVAL
                if not self._gone:
                    LOGGER.warning("%s is gone and cannot be made again; counted apart until then: %s",
                                   self.directory, exc)  # fmt: skip
                self._gone = True
            else:
                LOGGER.warning("%s was removed, by a cleaner perhaps; made again, the totals go on", self.directory)
                self._gone = False
            return not self._gone

    def _move(self) -> None:
        before = self._here
        with self.publish_lock:
            self._join(before)
            for rebind in list(self.on_files_moved):
                try:
                    rebind()
                except Exception as exc:  # noqa: BLE001 - the others' cells must not stay behind too
                    self._fault("workers.rebind", exc)
        with self._reading:
            self._kept.update({name: one for name, one in self._readings.items() if one.living and not one.own})
            self._readings = {}
            self._awaited = monotonic() + REJOIN_TIMEOUT
        os.write(before.ask, MSG_RESCAN)  # whoever listens there shall listen here
        self._outdated.append(before)

    def _rescan_peers(self) -> None:
        if self._here.is_in_place() and monotonic() >= self._awaited:  # else others are still to come
            self._peers = {pid_from_name(name) for name in self._names() if name != self.file_prefix.name}

    def _wait_for_peers(self) -> None:
        """After a move: wait for the others, who notice it within a tick."""
        while monotonic() < self._awaited:
            with self._reading:
                here = {pid_from_name(name) for name in self._names()}
            if not any(pid_exists(pid) for pid in self._peers - here):
                break
            sleep(0.01)
        self._awaited = 0.0

    @contextmanager
    def _locked(self, patience: float) -> Iterator[bool]:
        """Hold the lock of the directory; yields False when others hold it too long, or have removed the directory."""
        path = self.directory / "lock"
        deadline = monotonic() + patience
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            yield False
            return
        try:
            yield _lock_within(descriptor, deadline) and is_same_file(descriptor, path)
        finally:
            os.close(descriptor)

    def _names(self) -> list[str]:
        names = {self.file_prefix.name}
        with suppress(OSError):  # the directory is gone
            names.update(
                entry.name.removesuffix(".keys") for entry in os.scandir(self.directory) if entry.name.endswith(".keys")
            )
        return sorted(names - self._archive.merged_files)

    def _there(self) -> frozenset[str]:
        return frozenset(Path(entry.name).stem for entry in os.scandir(self.directory))

    def _remove_files(self, names: frozenset[str] | set[str]) -> None:
        for name in names:
            for kind in FILE_SUFFIXES:
                (self.directory / (name + kind)).unlink(missing_ok=True)


def _lock_within(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            lock_file(descriptor)
        except OSError:
            if monotonic() >= deadline:
                return False
            sleep(0.005)
        else:
            return True


def pid_from_name(name: str) -> int:
    """Return the process that files are named after; 0 where the name is none of ours."""
    pid = name.partition("-")[0]
    return int(pid) if pid.isdecimal() else 0


def write_pipe(path: Path, data: bytes) -> None:
    """Write to a pipe that somebody reads. Raises OSError where nobody does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
