"""`Worker`: joins the directory of its server, reads what all workers have counted, and leaves.

Each process writes its own files and reads those of all; `workers/files.py` describes them. There is no central
process and no message carries a count: a scrape in any worker reads every file and adds up. Only values that exist at
scrape time alone (functions, collectors) need the other workers, which publish them on request, in their files.

A worker that has ended, killed or not, has no lock on its files any more. The next reader merges its totals into the
archive and removes its files.

Locks, in the order in which they are taken:

1. `publish_lock`: values move into files, or are published. A scrape holds it to see each value in one place only.
2. `_read_lock`: readers and archive.
3. The file `lock` of the directory, between processes: joining, merging, leaving.
4. `_write_lock`: allocation in the files of this process. Callers may hold the lock of their own metrics.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.internal import json
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.workers.archive import MAX_ENDED_LABEL_SETS, Archive
from fastapi_observe.workers.directory import (
    check_directory,
    is_supervisor_alive,
    make_directory,
    remove_directory,
)
from fastapi_observe.workers.files import (
    READ_FLAGS,
    REPLY_COUNT_CELL,
    ValueFileReader,
    WorkerHandles,
    remove_worker_files,
)
from fastapi_observe.workers.locks import is_locked, is_same_file, lock_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.internal.prometheus_client import ExemplarTuple

JOIN_TIMEOUT: Final = 2.0
"""Seconds that a worker waits for the lock of the directory when it joins; a fourth of it when it leaves."""

REPLY_TIMEOUT: Final = 0.1
"""Seconds that a scrape waits for the other workers to publish their scrape-time values."""

WATCH_INTERVAL: Final = 0.5
"""Seconds between two checks whether the files of this process are still in place."""

SPACE_RETRY_INTERVAL: Final = 2.0
"""Seconds until values that found no space in the files are moved again."""

MSG_EXEMPLARS: Final = b"e"
MSG_VALUES: Final = b"v"
MSG_QUIT: Final = b"q"
"""Requests to a worker, one byte each."""

LOGGER: Final = logging.getLogger("fastapi_observe")


class CellExemplar(NamedTuple):
    """The exemplar of a cell: offset of the series in the value file, number of the cell in the series, exemplar."""

    offset: int
    cell: int
    exemplar: ExemplarTuple


class Worker:
    """A worker process among those of its server.

    `shared_state` is what the installs of this process have in common, such as the values of prometheus_client.
    `scrape_callbacks` publish scrape-time values, and return exemplars if the argument is true. Raises OSError if the
    directory cannot be joined.
    """

    def __init__(
        self,
        directory: Path,
        internal_errors: Callable[[str, BaseException], None],
        max_ended_label_sets: int = MAX_ENDED_LABEL_SETS,
    ) -> None:
        self.directory = directory
        self.live_workers = 1
        self.scrape_callbacks: list[Callable[[bool], list[CellExemplar]]] = []
        self.shared_state: dict[str, Any] = {}
        self.exemplars: dict[str, list[Any]] = {}
        self.publish_lock = threading.Lock()
        self._read_lock = threading.Lock()
        # Reentrant: a finalizer may run while it is held, and count something.
        self._write_lock = threading.RLock()
        self._internal_errors = internal_errors
        self._archive = Archive(directory, max_ended_label_sets)
        self._readers: dict[str, ValueFileReader] = {}
        self._own_exemplars: list[CellExemplar] = []
        self._unreadable: set[object] = set()
        self._sharing_stopped = self._leaving = False
        self._lacks_space = False  # some values are in no file: only this process reports them
        # The same while values are published, which moves all of them again: `_lacks_space` is set to it at the end.
        self._found_no_space = False
        self._space_error = ""
        self._space_throttle = LogThrottle()
        self._retry_at = 0.0
        self._handles = self._join()
        self._own_reader = ValueFileReader(self.file_prefix, os.getpid(), self._handles.files)
        self._thread = threading.Thread(target=self._listen, name="fastapi-observe-worker", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            remove_worker_files(directory, [self.file_prefix.name])
            self._handles.close()
            raise OSError(f"{exc}. Raise the limit of threads or processes (ulimit -u, or pids.max)") from exc

    @property
    def file_prefix(self) -> Path:
        """Path of the files of this process, without a suffix."""
        return self._handles.file_prefix

    @property
    def degraded(self) -> bool:
        """Whether some values are reported by this process only, for lack of space or of a directory."""
        return self._sharing_stopped or self._lacks_space

    @property
    def unreadable(self) -> int:
        """Number of files with invalid contents, each counted once."""
        return len(self._unreadable)

    # Joining

    def _join(self) -> WorkerHandles:
        deadline = monotonic() + JOIN_TIMEOUT
        while True:
            make_directory(self.directory)
            # Under the lock, so that no reader sees the files before they are locked, and the last worker to leave
            # does not remove the directory meanwhile.
            with self._locked(max(0.0, deadline - monotonic())) as locked:
                if locked:
                    return WorkerHandles(self.directory)
            if monotonic() >= deadline:
                raise OSError(f"another process holds the lock of {self.directory} for too long")

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[bool]:
        """Hold the lock of the directory. Yields False if it is not free within `timeout` seconds, or was removed."""
        path = self.directory / "lock"
        deadline = monotonic() + timeout
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            yield False
            return
        try:
            # The file may have been removed with the directory while this process waited: then it locks nothing.
            yield _lock_within(descriptor, deadline) and is_same_file(descriptor, path)
        finally:
            os.close(descriptor)

    def _check_files(self) -> bool:
        """Return whether values are shared. Stops sharing for good when files were removed or others may write."""
        if self._sharing_stopped:
            return False
        try:
            for path in (self.directory.parent, self.directory):
                check_directory(path)
            if self._handles.is_in_place() and not self._archive.is_removed():
                return True
            reason = "files in it were removed"
        except OSError as exc:
            reason = exc.strerror or str(exc)
        # There is no way back. The other workers have lost their files too, or merge what this one had written; a
        # new directory could count that again.
        self._sharing_stopped = True
        LOGGER.warning(
            "Worker processes no longer share their metrics in %s: %s. Each /metrics now reports one worker only. "
            "Restart the server, and set multiprocess_directory to a directory that nothing cleans up "
            "(systemd's RemoveIPC empties /dev/shm at logout).",
            self.directory,
            reason,
        )
        return False

    # Writing

    def allocate(self, description: bytes, labels: tuple[str, ...], initial: list[float]) -> list[float] | None:
        """Return the cells of a series, or None if there is no space. `description` is that of its family, as JSON."""
        try:
            with self._write_lock:
                return self._handles.files.allocate(description, labels, initial)
        except OSError as exc:
            # Not logged here: callers hold locks of metrics, which a log record may need.
            self._lacks_space = self._found_no_space = True
            self._space_error = str(exc)
            return None

    def cell_offset(self, description: bytes, labels: tuple[str, ...]) -> int:
        """Return the offset of the cells of a series. Raises KeyError if there is no such series."""
        return self._handles.files.cell_offset(description, labels)

    # Reading

    def read(self) -> tuple[object, list[ValueFileReader]]:
        """Return what all workers have counted, the archive included, and a token that changes with this list.

        Totals never go back: each count is in the files of one worker, or in the archive, which names that worker.
        """
        with self._read_lock:
            if not self._check_files():
                self._own_reader.refresh()
                return "not shared", [self._own_reader]
            self._refresh()
            if not all(reader.live for reader in self._readers.values()):
                self._merge_ended()
            token = frozenset(self._readers), self._archive.identity
            return token, [*self._readers.values(), self._archive.reader]

    def _refresh(self) -> None:
        # Another worker may merge at the same time. Then files are gone that are in the new archive: read again.
        # Several merges within one read are rare, and five in a row are not expected.
        for _ in range(5):
            if self._archive.changed():
                self._archive.read()
                if self._archive.reader.unreadable:
                    self._unreadable.add(self._archive.identity)
            self._readers = {name: self._reader_of(name) for name in self._names()}
            complete = all([self._refresh_one(reader) for reader in list(self._readers.values())])  # noqa: C419 - each is read, also after one that was merged
            if complete and not self._archive.changed():
                return

    def _names(self) -> list[str]:
        names = {self.file_prefix.name}
        with suppress(OSError):  # the directory was removed
            names.update(
                entry.name.removesuffix(".index")
                for entry in os.scandir(self.directory)
                if entry.name.endswith(".index")
            )
        return sorted(names - self._archive.merged_files)

    def _reader_of(self, name: str) -> ValueFileReader:
        if name == self.file_prefix.name:
            return self._own_reader
        return self._readers.get(name) or ValueFileReader(self.directory / name, _parse_pid(name))

    def _refresh_one(self, reader: ValueFileReader) -> bool:
        """Read the files of one worker. Returns False if another worker has merged them."""
        # The lock comes before the values: if it was free, the values that are read now are the last ones.
        reader.live = reader.own or _has_lock(reader)
        try:
            reader.refresh()
        except FileNotFoundError:
            del self._readers[reader.name]
            if not self._archive.changed():  # not merged: another program has removed some of the files
                self._unreadable.add(reader.name)
                return True
            return False
        except OSError:
            reader.unreadable = True
        if reader.unreadable:
            self._unreadable.add(reader.name)
        return True

    def _merge_ended(self) -> None:
        """Merge ended workers into the archive, unless another worker is doing it; they are counted either way."""
        with suppress(OSError), self._locked(0.0) as locked:
            if locked:
                if self._archive.changed():
                    self._refresh()
                self._merge([reader for reader in self._readers.values() if not reader.live])
        self._readers = {
            name: reader for name, reader in self._readers.items() if name not in self._archive.merged_files
        }

    def _merge(self, ended: list[ValueFileReader]) -> None:
        # A process that is killed in between leaves files that the archive names. They are not read, and the next
        # merge removes them.
        self._archive.merge(ended, frozenset(Path(entry.name).stem for entry in os.scandir(self.directory)))
        remove_worker_files(self.directory, self._archive.merged_files)

    # Scrape-time values

    def request_values(self, *, exemplars: bool) -> None:
        """Have all live workers publish their scrape-time values. Those that do not reply in time are skipped."""
        peers: list[ValueFileReader] = []
        with self._read_lock:
            if self._check_files():
                self._refresh()
                peers = [reader for reader in self._readers.values() if reader.live and not reader.own]
        self.live_workers = len(peers) + 1
        waiting: list[tuple[ValueFileReader, float]] = []
        for reader in peers:
            with suppress(OSError):
                before = reader.reply_count()
                _write_pipe(reader.file_prefix.with_suffix(".requests"), MSG_EXEMPLARS if exemplars else MSG_VALUES)
                waiting.append((reader, before))
        self.publish_values(exemplars=exemplars)
        deadline = monotonic() + REPLY_TIMEOUT
        while waiting and monotonic() < deadline:
            sleep(0.001)
            with suppress(OSError):
                waiting = [(reader, before) for reader, before in waiting if reader.reply_count() == before]
        if exemplars:
            self.exemplars = {reader.name: _read_exemplars(reader) for reader in peers}
            self.exemplars[self.file_prefix.name] = self._own_exemplars

    def publish_values(self, *, exemplars: bool) -> None:
        """Write the scrape-time values of this process to its files."""
        with self.publish_lock:
            found: list[CellExemplar] = []
            self._found_no_space = False
            for callback in list(self.scrape_callbacks):
                try:
                    found.extend(callback(exemplars))
                except Exception as exc:  # noqa: BLE001 - the worker that waits for the reply must get one
                    self._internal_errors("workers.publish", exc)
            if exemplars:
                self._own_exemplars = found
                self._write_exemplars(found)
            self._lacks_space = self._found_no_space
            self._handles.files.header[REPLY_COUNT_CELL] += 1

    def _write_exemplars(self, exemplars: list[CellExemplar]) -> None:
        temporary = self.file_prefix.with_suffix(".new")
        try:
            temporary.write_bytes(json.dumps(exemplars, default=tuple))
            temporary.replace(self.file_prefix.with_suffix(".exemplars"))
        except OSError as exc:
            self._found_no_space = True
            self._space_error = str(exc)

    def _listen(self) -> None:
        watch_at = monotonic() + WATCH_INTERVAL
        poll = select.poll()
        poll.register(self._handles.requests, select.POLLIN)
        while not self._leaving:
            if poll.poll(max(0.0, watch_at - monotonic()) * 1000):
                try:
                    messages = os.read(self._handles.requests, 4096)
                except OSError:  # pragma: no cover - `leave` has closed it after waiting for this thread in vain
                    return
                if MSG_QUIT in messages:
                    return
                self.publish_values(exemplars=MSG_EXEMPLARS in messages)
            if monotonic() >= watch_at:
                self._watch()
                watch_at = monotonic() + WATCH_INTERVAL

    def _watch(self) -> None:
        """Check the files, and try again to find space. Logs a warning if there is none."""
        try:
            with self._read_lock:
                self._check_files()
            if self._lacks_space and monotonic() >= self._retry_at:
                self._retry_at = monotonic() + SPACE_RETRY_INTERVAL
                self.publish_values(exemplars=False)
                if self._lacks_space and self._space_throttle.allow("space"):
                    LOGGER.warning(
                        "Worker processes share only a part of their metrics in %s: %s. Each /metrics reports the rest "
                        "for one worker only. Free space there, set multiprocess_directory to another directory, or "
                        "use fewer label sets. Retried every %d seconds; logged at most once a minute.",
                        self.directory,
                        self._space_error,
                        SPACE_RETRY_INTERVAL,
                    )
        except Exception as exc:  # noqa: BLE001 - this thread must go on listening
            self._internal_errors("workers.watch", exc)

    # Leaving

    def leave(self) -> None:
        """Merge the counts of this process into the archive and close its files. Cells that are held stay usable.

        The last worker removes the directory if the supervisor has ended. Otherwise the next worker continues with
        the totals, and the next server removes what is left.
        """
        self.stop_listening()
        if self._check_files():
            with self._read_lock, suppress(OSError), self._locked(JOIN_TIMEOUT / 4) as locked:
                if locked:  # pragma: no branch - else the next reader merges the files
                    self._refresh()
                    readers = self._readers.values()
                    if any(one.live and not one.own for one in readers) or is_supervisor_alive(self.directory):
                        self._merge([one for one in readers if one.own or not one.live])
                    else:
                        remove_directory(self.directory)
        self.close()

    def stop_listening(self) -> None:
        """End the thread that replies to other workers."""
        self._leaving = True
        os.write(self._handles.requests, MSG_QUIT)
        self._thread.join(JOIN_TIMEOUT / 4)

    def close(self) -> None:
        """Close the files and leave them where they are, as after `kill -9`.

        In a forked child this closes the copies of the parent's descriptors, and must not touch the files.
        """
        self.scrape_callbacks.clear()
        self.shared_state.clear()
        self._handles.close()


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


def _has_lock(reader: ValueFileReader) -> bool:
    """Return whether a worker holds its lock; true if that is unknown: merging a live worker would count it twice."""
    try:
        return is_locked(reader.file_prefix.with_suffix(".lock"))
    except OSError:
        return True


def _parse_pid(name: str) -> int:
    """Return the pid in the name of a worker; 0 if the name is not one."""
    pid = name.partition("-")[0]
    return int(pid) if pid.isdecimal() else 0


def _write_pipe(path: Path, data: bytes) -> None:
    """Write to a named pipe. Raises OSError if no process reads it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _read_exemplars(reader: ValueFileReader) -> list[Any]:
    try:
        with os.fdopen(os.open(reader.file_prefix.with_suffix(".exemplars"), READ_FLAGS), "rb") as file:
            exemplars = json.loads(file.read())
    except (OSError, ValueError):
        return []
    return exemplars if isinstance(exemplars, list) else []
