"""One worker process among the others of its server: `Worker` joins them, reads what they count, and leaves."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastapi_observe.workers.archive import MAX_ENDED_LABEL_SETS
from fastapi_observe.workers.directory import is_locked, is_supervisor_alive, remove_directory
from fastapi_observe.workers.files import READ_FLAGS, ValueFileReader
from fastapi_observe.workers.presence import pid_exists
from fastapi_observe.workers.standing import (
    JOIN_TIMEOUT,
    MSG_RESCAN,
    RETRY_INTERVAL,
    WorkerBase,
    pid_from_name,
    write_pipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPLY_TIMEOUT: Final = 0.1
"""Seconds that a scrape waits for the other workers to read what is only read at scrape."""

WATCH_INTERVAL: Final = 0.5
"""Seconds until a worker that nobody asks looks whether its files still stand."""

MSG_EXEMPLARS: Final = b"e"
MSG_VALUES: Final = b"v"
MSG_QUIT: Final = b"q"
"""What a worker is asked for, a byte each."""

Exemplars = list[tuple[int, int, dict[str, str], float, float]]
"""Exemplars: where the record begins, its cell, then labels, value and time in seconds."""


class Worker(WorkerBase):
    """A process among its like.

    `attached` is what the installs of this process share. `most` is how many label sets of one metric are kept of
    workers that have ended.
    """

    def __init__(
        self, directory: Path, fault: Callable[[str, BaseException], None], most: int = MAX_ENDED_LABEL_SETS
    ) -> None:
        self.live_workers = 1
        self.scrape_callbacks: list[Callable[[bool], Exemplars]] = []
        self.shared_state: dict[str, Any] = {}
        self.exemplars: dict[str, list[Any]] = {}
        self._counted: set[object] = set()
        self._short = self._failed = False
        super().__init__(directory, fault, most)
        self._thread: threading.Thread | None = threading.Thread(
            target=self._listen, name="fastapi-observe-worker", daemon=True
        )
        self._thread.start()

    @property
    def degraded(self) -> bool:
        """Whether something is shown by this process alone, for lack of space or of a directory."""
        return self._gone or self._short

    # Writing

    def allocate(self, family: bytes, labels: tuple[str, ...], initial: list[float]) -> list[float] | None:
        """Return the cells of a record, or None when there is no space."""
        try:
            with self._writing:
                return self._own.allocate(family, labels, initial)
        except OSError:
            self._short = self._failed = True
            return None

    def cell_offset(self, family: bytes, labels: tuple[str, ...]) -> int:
        """Return where the cells of a record begin. Raises KeyError when there is no such record."""
        return self._own.cell_offset(family, labels)

    # Reading

    @property
    def unreadable(self) -> int:
        """How many files made no sense, each counted once."""
        return len(self._counted)

    def read(self) -> tuple[object, list[ValueFileReader]]:
        """Return what everybody has counted, and a token that changes when the list does; the dead are folded.

        The archive is among them. Totals never go back: each count is in one file, or in the archive which says so.
        """
        with self._reading:
            self._refresh()
            if self._archive.missing or any(not reading.living for reading in self._readings.values()):
                self._fold()
                kept = self._readings.items()
                self._readings = {name: reading for name, reading in kept if name not in self._archive.merged_files}
            token = frozenset(self._readings), frozenset(self._kept), self._archive.identity
            return token, [*self._readings.values(), *self._kept.values(), self._archive.reading]

    def _refresh(self) -> None:
        known = {**self._readings, **self._kept}
        self._refresh_all()
        self._kept = {
            name: one
            for name, one in known.items()
            if name not in self._readings and self._is_missed(one, removed=self._gone or name in self._kept)
        }

    def _is_missed(self, reading: ValueFileReader, *, removed: bool) -> bool:
        """Tell whether a worker that has no files here lives, and will come."""
        if reading.own or not reading.living or reading.name in self._archive.merged_files:
            return False
        if os.path.lexists(reading.stem.with_suffix(".moved")):
            return False
        return _is_held(reading) or (removed and pid_exists(reading.pid))

    def _refresh_all(self) -> None:
        for _ in range(5):  # another worker may fold at the same time: then what is there has changed
            if self._archive.changed():
                self._archive.read()
                if self._archive.reading.unreadable:
                    self._counted.add(self._archive.identity)
            self._readings = {name: self._readings.get(name) or self._new_reading(name) for name in self._names()}
            complete = not [1 for reading in list(self._readings.values()) if not self._refresh_one(reading)]
            if complete and not self._archive.changed():
                return

    def _new_reading(self, name: str) -> ValueFileReader:
        return ValueFileReader(
            self.directory / name, pid_from_name(name), self._own if name == self.file_prefix.name else None
        )

    def _refresh_one(self, reading: ValueFileReader) -> bool:
        # Whether it lives comes first: what the dead have left does not change any more.
        reading.living = reading.own or _is_held(reading)
        if not reading.living and not os.path.lexists(reading.stem.with_suffix(".lock")):  # removed by others
            reading.living = pid_exists(reading.pid)
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

    def _fold_in(self, dead: list[ValueFileReader]) -> None:
        self._archive.merge(dead, self._there())
        self._remove_files(self._archive.merged_files)

    # Asking

    def request_values(self, *, exemplars: bool) -> None:
        """Have every living worker read what is only read at scrape; who does not answer at once is not waited for."""
        waiting: list[tuple[ValueFileReader, float]] = []
        self.restore_files()
        self._wait_for_peers()
        with self._reading:
            self._refresh()
            others = [reading for reading in self._readings.values() if reading.living and not reading.own]
            self.live_workers = len(others) + len(self._kept) + 1
            self._rescan_peers()
        for reading in others:
            with suppress(OSError):
                before = reading.answers()
                write_pipe(reading.stem.with_suffix(".ask"), MSG_EXEMPLARS if exemplars else MSG_VALUES)
                waiting.append((reading, before))
        self.publish_values(exemplars=exemplars)
        deadline = monotonic() + REPLY_TIMEOUT
        while waiting and monotonic() < deadline:
            sleep(0.001)
            with suppress(OSError):
                waiting = [(reading, before) for reading, before in waiting if reading.answers() == before]
        if exemplars:
            self.exemplars = {
                reading.name: _read_exemplars(reading)
                for reading in [*others, self._new_reading(self.file_prefix.name)]
            }

    def publish_values(self, *, exemplars: bool) -> None:
        """Read what is only read at scrape, into our own files."""
        with self.publish_lock:
            found: Exemplars = []
            self._failed = False
            for answerer in list(self.scrape_callbacks):
                try:
                    found.extend(answerer(exemplars))
                except Exception as exc:  # noqa: BLE001 - whoever waits for the answer must get one
                    self._fault("workers.answer", exc)
            try:
                if exemplars:
                    temporary = self.file_prefix.with_suffix(".new")
                    temporary.write_bytes(orjson.dumps(found))
                    temporary.replace(self.file_prefix.with_suffix(".exemplars"))
            except OSError:
                self._failed = True
            self._short = self._failed  # everything that had no space was tried again
            self._own.header[0] += 1

    def _listen(self) -> None:
        watch = monotonic() + WATCH_INTERVAL
        while not self._leaving:
            here = self._here
            while self._outdated:
                self._outdated.pop().close()
            poll = select.poll()
            poll.register(here.ask, select.POLLIN)
            if poll.poll(max(0.0, watch - monotonic()) * 1000):
                try:
                    asked = os.read(here.ask, 4096)
                except OSError:  # pragma: no cover - it was closed by `leave`, which has waited long enough
                    return
                if MSG_QUIT in asked:
                    return
                if asked.strip(MSG_RESCAN):
                    self.publish_values(exemplars=MSG_EXEMPLARS in asked)
                watch = watch if MSG_RESCAN not in asked else 0.0
            if monotonic() >= watch:
                self._watch()
                watch = monotonic() + WATCH_INTERVAL

    def _watch(self) -> None:
        """Look after what nobody has asked for: our files, who is there, and what found no space."""
        try:
            if not self.restore_files():
                return
            with self._reading:
                if self._archive.changed():  # what it says may be gone when we next look
                    self._archive.read()
                self._rescan_peers()
            if self._short and monotonic() >= self._again:
                self._again = monotonic() + RETRY_INTERVAL
                self.publish_values(exemplars=False)
        except Exception as exc:  # noqa: BLE001 - whoever listens must go on listening
            self._fault("workers.watch", exc)

    # Leaving

    def leave(self) -> None:
        """Put our counts into the archive and go. The cells stay usable.

        The last one removes the directory if the supervisor is gone; else a next worker may go on with the totals, and
        what is left is for `sweep`.
        """
        self._leaving = True
        stands = self.restore_files()
        if self._thread is not None:  # pragma: no branch - a thread that could not be started
            os.write(self._ask, MSG_QUIT)
            self._thread.join(JOIN_TIMEOUT / 4)
            self._thread = None
        if not stands:
            self.close()
            return
        with self._reading, suppress(OSError), self._locked(JOIN_TIMEOUT / 4) as got:
            if got:  # pragma: no branch - somebody else may hold it, for a moment
                self._refresh()
                readings = self._readings.values()
                if any(one.living and not one.own for one in readings) or is_supervisor_alive(self.directory):
                    self._fold_in([one for one in readings if one.own or not one.living])
                else:
                    remove_directory(self.directory)
        self.close()

    def close(self) -> None:
        """Close everything without a word: in a forked child nothing of this is ours."""
        self.scrape_callbacks.clear()
        self.on_files_moved.clear()
        self.shared_state.clear()
        for presence in (self._here, *self._outdated):
            presence.close()


def _read_exemplars(reading: ValueFileReader) -> list[Any]:
    try:
        with os.fdopen(os.open(reading.stem.with_suffix(".exemplars"), READ_FLAGS), "rb") as file:
            found = orjson.loads(file.read())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _is_held(reading: ValueFileReader) -> bool:
    """Tell whether somebody holds the lock; who cannot be asked is taken to live, so that nothing is folded twice."""
    try:
        return is_locked(reading.stem.with_suffix(".lock"))
    except OSError:
        return True
