"""One worker process among the others of its server: `Worker` joins them, reads what they count, and leaves."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastapi_observe.runtime.worker_archive import MOST_LABEL_SETS, Archive
from fastapi_observe.runtime.worker_files import NEW_FILE, READ, OwnFiles, Reading
from fastapi_observe.runtime.worker_place import check, is_locked, is_supervised, lock, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE: Final = 2.0
"""Seconds until a worker gives up waiting for the others to let it join."""

ANSWER_WITHIN: Final = 0.1
"""Seconds that a scrape waits for the other workers to read what is only read at scrape."""

EXEMPLARS: Final = b"e"
VALUES: Final = b"v"
QUIT: Final = b"q"
"""What a worker is asked for, a byte each."""

Answer = list[tuple[int, int, dict[str, str], float, float]]
"""Exemplars: where the record begins, its cell, then labels, value and time in seconds."""


class Worker:
    """A process among its like.

    The files are there from the beginning; the lock on one of them is held until the process ends, and the kernel
    gives it up however that happens. `degraded` is set once something found no space; `attached` is what the installs
    of this process share. `most` is how many label sets of one metric are kept of workers that have ended.
    """

    def __init__(
        self, directory: Path, fault: Callable[[str, BaseException], None], most: int = MOST_LABEL_SETS
    ) -> None:
        self.directory = directory
        self.stem = directory / f"{os.getpid()}-{monotonic_ns()}"
        self.degraded = False
        self.living = 1
        self.answerers: list[Callable[[bool], Answer]] = []
        self.attached: dict[str, Any] = {}
        self.exemplars: dict[str, list[Any]] = {}
        self._counted: set[object] = set()
        self._archive = Archive(directory, most)
        self._readings: dict[str, Reading] = {}
        self._reading = threading.Lock()
        self._fault = fault
        self._answering = threading.Lock()
        self._writing = threading.RLock()
        self._join()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._listen, name="fastapi-observe-worker", daemon=True
        )
        self._thread.start()

    def _join(self) -> None:
        deadline = monotonic() + PATIENCE
        while True:
            with suppress(FileExistsError):
                self.directory.mkdir(0o700)
            check(self.directory)
            # Under the lock, since files without a lock on them are those of the dead.
            with self._locked(max(0.0, deadline - monotonic())) as got:
                if got:
                    self._make_files()
                    return
            if monotonic() >= deadline:
                raise OSError(f"{self.directory} is locked by a process that does not go on")

    def _make_files(self) -> None:
        made: list[int] = []
        try:
            made.append(os.open(self.stem.with_suffix(".lock"), NEW_FILE, 0o600))
            lock(made[0])
            os.mkfifo(self.stem.with_suffix(".ask"), 0o600)
            made.append(os.open(self.stem.with_suffix(".ask"), os.O_RDWR | os.O_CLOEXEC))
            self._own = OwnFiles(self.stem)
        except BaseException:
            self._remove_files({self.stem.name})
            for descriptor in made:
                os.close(descriptor)
            raise
        self._lock, self._ask = made

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
            yield _lock_within(descriptor, deadline) and _is_at(descriptor, path)
        finally:
            os.close(descriptor)

    # Writing

    def allocate(self, family: bytes, labels: tuple[str, ...], initial: list[float]) -> list[float] | None:
        """Return the cells of a record, or None when there is no space."""
        try:
            with self._writing:
                return self._own.allocate(family, labels, initial)
        except OSError:
            self.degraded = True
            return None

    def where(self, family: bytes, labels: tuple[str, ...]) -> int:
        """Return where the cells of a record begin. Raises KeyError when there is no such record."""
        return self._own.where(family, labels)

    # Reading

    @property
    def unreadable(self) -> int:
        """How many files made no sense, each counted once."""
        return len(self._counted)

    def read(self) -> tuple[object, list[Reading]]:
        """Return what everybody has counted, and a token that changes when the list does; the dead are folded.

        The archive is among them. Totals never go back: each count is in one file, or in the archive which says so.
        """
        with self._reading:
            self._refresh()
            if any(not reading.living for reading in self._readings.values()):
                self._fold()
                kept = self._readings.items()
                self._readings = {name: reading for name, reading in kept if name not in self._archive.folded}
            token = frozenset(self._readings), self._archive.identity
            return token, [*self._readings.values(), self._archive.reading]

    def _refresh(self) -> None:
        for _ in range(5):  # another worker may fold at the same time: then what is there has changed
            if self._archive.changed():
                self._archive.read()
                if self._archive.reading.unreadable:
                    self._counted.add(self._archive.identity)
            self._readings = {name: self._readings.get(name) or self._new_reading(name) for name in self._names()}
            complete = not [1 for reading in list(self._readings.values()) if not self._refresh_one(reading)]
            if complete and not self._archive.changed():
                return

    def _names(self) -> list[str]:
        names = (entry.name for entry in os.scandir(self.directory) if entry.name.endswith(".keys"))
        return sorted(
            name for name in (name.removesuffix(".keys") for name in names) if name not in self._archive.folded
        )

    def _new_reading(self, name: str) -> Reading:
        pid = name.partition("-")[0]
        reading = Reading(self.directory / name, int(pid) if pid.isdecimal() else 0)
        reading.own = name == self.stem.name
        return reading

    def _refresh_one(self, reading: Reading) -> bool:
        # Whether it lives comes first: what the dead have left does not change any more.
        reading.living = reading.own or is_locked(reading.stem.with_suffix(".lock"))
        try:
            reading.refresh()
        except FileNotFoundError:
            del self._readings[reading.name]
            if not self._archive.changed():  # nobody has folded it: half of it is missing
                self._counted.add(reading.name)
                return True
            return False
        except OSError:
            reading.unreadable = True
        if reading.unreadable:
            self._counted.add(reading.name)
        return True

    def _fold(self) -> None:
        """Put what the dead have left into the archive, if nobody else does so now; it counts either way."""
        with suppress(OSError), self._locked(0.0) as got:
            if not got:
                return
            if self._archive.changed():
                self._refresh()
            dead = [reading for reading in self._readings.values() if not reading.living]
            self._fold_in(dead)

    def _fold_in(self, dead: list[Reading]) -> None:
        there = frozenset(Path(entry.name).stem for entry in os.scandir(self.directory))
        self._archive.fold(dead, there)
        self._remove_files(self._archive.folded)

    def _remove_files(self, names: frozenset[str] | set[str]) -> None:
        for name in names:
            for kind in (".keys", ".values", ".ask", ".exemplars", ".new", ".lock"):
                (self.directory / (name + kind)).unlink(missing_ok=True)

    # Asking

    def ask(self, *, exemplars: bool) -> None:
        """Have every living worker read what is only read at scrape; who does not answer at once is not waited for."""
        waiting: list[tuple[Reading, float]] = []
        with self._reading:
            self._refresh()
            others = [reading for reading in self._readings.values() if reading.living and not reading.own]
            self.living = len(others) + 1
        for reading in others:
            with suppress(OSError):
                before = reading.answers()
                _write(reading.stem.with_suffix(".ask"), EXEMPLARS if exemplars else VALUES)
                waiting.append((reading, before))
        self.answer(exemplars=exemplars)
        deadline = monotonic() + ANSWER_WITHIN
        while waiting and monotonic() < deadline:
            sleep(0.001)
            with suppress(OSError):
                waiting = [(reading, before) for reading, before in waiting if reading.answers() == before]
        if exemplars:
            self.exemplars = {
                reading.name: _read_exemplars(reading) for reading in [*others, self._new_reading(self.stem.name)]
            }

    def answer(self, *, exemplars: bool) -> None:
        """Read what is only read at scrape, into our own files."""
        with self._answering:
            found: Answer = []
            for answerer in list(self.answerers):
                try:
                    found.extend(answerer(exemplars))
                except Exception as exc:  # noqa: BLE001 - whoever waits for the answer must get one
                    self._fault("workers.answer", exc)
            try:
                if exemplars:
                    temporary = self.stem.with_suffix(".new")
                    temporary.write_bytes(orjson.dumps(found))
                    temporary.replace(self.stem.with_suffix(".exemplars"))
            except OSError:
                self.degraded = True
            self._own.header[0] += 1

    def _listen(self) -> None:
        while True:
            asked = os.read(self._ask, 4096)
            if QUIT in asked:
                return
            self.answer(exemplars=EXEMPLARS in asked)

    # Leaving

    def leave(self) -> None:
        """Put our counts into the archive and go. The cells stay usable.

        The last one removes the directory if the supervisor is gone; else a next worker may go on with the totals, and
        what is left is for `sweep`.
        """
        if self._thread is not None:  # pragma: no branch - a thread that could not be started
            os.write(self._ask, QUIT)
            self._thread.join(PATIENCE / 4)
            self._thread = None
        with self._reading, suppress(OSError), self._locked(PATIENCE / 4) as got:
            if got:  # pragma: no branch - somebody else may hold it, for a moment
                self._refresh()
                readings = self._readings.values()
                if any(one.living and not one.own for one in readings) or is_supervised(self.directory):
                    self._fold_in([one for one in readings if one.own or not one.living])
                else:
                    remove(self.directory)
        self.forget()

    def forget(self) -> None:
        """Close everything without a word: in a forked child nothing of this is ours."""
        self.answerers.clear()
        self.attached.clear()
        self._own.close()
        for descriptor in (self._lock, self._ask):
            os.close(descriptor)


def _lock_within(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            lock(descriptor)
        except OSError:
            if monotonic() >= deadline:
                return False
            sleep(0.005)
        else:
            return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file still stands where it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _read_exemplars(reading: Reading) -> list[Any]:
    try:
        with os.fdopen(os.open(reading.stem.with_suffix(".exemplars"), READ), "rb") as file:
            found = orjson.loads(file.read())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
