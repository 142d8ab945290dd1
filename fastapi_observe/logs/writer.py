"""The queue of log lines and the thread that writes them to standard output and to files."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.logs.backlog import MAX_BYTES, Backlog
from fastapi_observe.logs.stdout import StandardOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.logs.file.file import LogFile

QUEUE_LINES: Final = 10_000
"""Most lines that wait for the thread; more are dropped and counted, those of level error a tenth later."""

BATCH_DELAY: Final = 0.025
"""Seconds that the thread lets lines gather before it writes them."""

RETRY_DELAY: Final = 0.005
"""Seconds between two offers to a standard output that is slow."""

MAX_BLOCK: Final = 0.05
"""Seconds that an urgent line may wait for a standard output that takes nothing, or for a file that others write to."""

CHUNK_SIZE: Final = 1 << 16
"""Bytes that are taken at once from what waits for standard output."""

COUNT_PATIENCE: Final = 0.1
"""Seconds that a count waits for a write to end."""

INFO: Final = 20
ERROR: Final = 40
"""Numbers of levels, as those of `logging`."""

THREAD_NAME: Final = "fastapi-observe-log-writer"
CMD_WRITE: Final = "write"
CMD_END: Final = "end"
"""What the thread is woken up for."""


class LineWriter:
    """Writes lines to `sys.stdout`, as it is at that moment, and to log files, in the order of the calls.

    `write` costs the caller an append; a daemon thread, started with the first line, writes in batches. Lines go to
    their files first; those that standard output does not take at once wait in the `Backlog`, and neither thread nor
    caller is blocked. Urgent lines are written before `write` returns. `written` counts lines that standard output
    took, `lost` by reason those that it did not. After `close`, and in a forked child, every line is written at once,
    until `open`. `on_fault` is told of faults of ours: neither the thread nor a caller ends by one.
    """

    def __init__(self, limit: int = QUEUE_LINES) -> None:
        self.written = 0
        self.lost = {"queue_full": 0, "write": 0, "internal": 0}
        self._limit = limit
        self.on_fault: Callable[[str, BaseException], Any] = lambda _site, _exc: None
        self._direct = True
        self._renew()
        self._hold_at_fork()

    def _renew(self) -> None:
        self._queue: deque[tuple[Any, LogFile | None, bytes | Callable[[Any], bytes], int]] = deque()
        self._bytes = 0
        self._backlog = Backlog()
        self._output = StandardOutput()
        self._lock = threading.Lock()
        self._counting = threading.RLock()
        self._lifetime = threading.RLock()
        self._owner = 0
        self._forking = False
        self._stuck = self._late = False
        self._awake = False
        self._files: dict[LogFile, None] = {}
        self._thread: threading.Thread | None = None
        # The one queue of the standard library that a signal handler or `__del__` may use in the middle of itself.
        self._wake: SimpleQueue[str] = SimpleQueue()

    def _hold_at_fork(self) -> None:
        """Fork only between two writes; the child begins with nothing of its parent's."""
        if not hasattr(os, "register_at_fork"):  # pragma: no cover - Windows cannot fork
            return
        reference = weakref.ref(self)

        def call(method: Callable[[LineWriter], None]) -> Callable[[], None]:
            return lambda: None if (writer := reference()) is None else method(writer)

        os.register_at_fork(
            before=call(LineWriter._before_fork),
            after_in_parent=call(LineWriter._after_fork),
            after_in_child=call(LineWriter._begin_as_child),
        )

    def _begin_as_child(self) -> None:
        """Write at once until `open`: a child that ends with `os._exit` flushes nothing."""
        self._renew()
        self._direct = True

    def _before_fork(self) -> None:
        self._forking = self._owner != threading.get_ident() and self._lock.acquire(timeout=1.0)

    def _after_fork(self) -> None:
        if self._forking:
            self._forking = False
            self._lock.release()

    def __len__(self) -> int:
        return len(self._queue) + len(self._backlog) + bool(self._output.partial_line)

    @property
    def dropped(self) -> int:
        """Lines that standard output did not get."""
        return sum(self.lost.values()) + self._backlog.shed

    def tally(self) -> tuple[int, dict[str, int], int]:
        """Return at one moment how many lines standard output took, lost (by reason) and waits for."""
        with self._paused():
            lost = {**self.lost, "queue_full": self.lost["queue_full"] + self._backlog.shed}
            return self.written, lost, len(self)

    def line_tally(self, file: LogFile) -> tuple[int, dict[str, int], int]:
        """Return the same of a file."""
        with self._paused():
            waiting = sum(item[1] is file for item in self._queue.copy())
            return file.written, {**file.dropped}, waiting + len(file)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Count between two writes, unless one takes long."""
        held = self._owner != threading.get_ident() and self._lock.acquire(timeout=COUNT_PATIENCE)
        try:
            yield
        finally:
            if held:
                self._lock.release()

    def enqueue(
        self, record: Any, encode: Callable[[Any], bytes], file: LogFile | None = None, level: int = INFO
    ) -> None:
        """Write what `encode(record)` returns, to standard output and to `file`; most often the thread calls it."""
        queue = self._queue
        if len(queue) >= self._limit:
            self._refuse(file)
            return
        queue.append((record, file, encode, level))
        if self._direct:
            self._drain(MAX_BLOCK)
        elif not self._awake:
            self._wake_thread()

    def write(
        self, line: bytes, *, urgent: bool = False, file: LogFile | None = None, copy: bytes = b"", level: int = INFO
    ) -> None:
        """Write `line` to standard output and `copy` to `file`. Never raises, never blocks for longer than 0.05 s."""
        queue = self._queue
        if (self._bytes > MAX_BYTES or len(queue) >= self._limit) and not self._has_room_for(level):
            self._refuse(file)
            return
        self._bytes += len(line)
        queue.append((line, file, copy, level))
        if urgent or self._direct:
            self._drain(MAX_BLOCK)
        elif not self._awake:
            self._wake_thread()

    def _has_room_for(self, level: int) -> bool:
        """Tell whether a line has room in a full queue: errors have some of their own."""
        return level >= ERROR and len(self._queue) < self._limit * 1.1 and self._bytes <= MAX_BYTES * 1.1

    def _refuse(self, file: LogFile | None) -> None:
        with self._counting:
            self.lost["queue_full"] += 1
            if file is not None:
                file.dropped["queue_full"] += 1

    def open(self) -> None:
        """Let lines gather for the thread from now on."""
        if self._direct:
            self._direct = self._awake = False
            atexit.unregister(self._close_at_exit)  # a forked child has its parent's
            atexit.register(self._close_at_exit)

    def flush(self, timeout: float) -> bool:
        """Write what waits, for at most about `timeout` seconds; tell whether nothing is left."""
        self._stuck = self._late = False
        return self._drain(timeout) and not len(self) and not any(map(len, self._files))

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits and end the thread; lines that still come are written at once."""
        with self._lifetime:
            self._direct = True
            atexit.unregister(self._close_at_exit)
            thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.put(CMD_END)
            thread.join(timeout)
        self.flush(timeout)

    def _close_at_exit(self) -> None:
        self._safely(self.close)

    def _safely(self, step: Callable[..., Any], *given: Any) -> Any:
        """Take a step; None if it raised: a fault is counted, and what is next goes on."""
        try:
            return step(*given)
        except Exception as exc:  # noqa: BLE001 - see above
            return self.on_fault("logs.writer", exc)

    def _wake_thread(self) -> None:
        if self._direct:
            return
        self._awake = True
        if self._thread is None or not self._thread.is_alive():
            self._start_thread()
        self._wake.put(CMD_WRITE)

    def _start_thread(self) -> None:
        with self._lifetime:
            if self._direct or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._run, args=(self._wake,), name=THREAD_NAME, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no new threads: the interpreter ends, or the limit is reached
                self._direct = True
                self._drain(MAX_BLOCK)
                return
            self._thread = thread

    def _run(self, wake: SimpleQueue[str]) -> None:
        try:
            while (going := self._safely(self._loop_once, wake)) is not False:
                if going is None:
                    self._awake = False
                    sleep(BATCH_DELAY)
        finally:  # whatever ended us: the next line starts another
            self._awake = False

    def _loop_once(self, wake: SimpleQueue[str]) -> bool:
        """Wait for lines and write them; tell whether the thread goes on."""
        if self._is_held_back():
            self._output.wait(BATCH_DELAY)
            going = self._woken(wake, RETRY_DELAY)
        else:
            going = wake.get() is CMD_WRITE and self._woken(wake, BATCH_DELAY)
        self._awake = False
        self._drain(None)
        for file in list(self._files):
            going = going and self._safely(self._run_maintenance, file, wake) is not False
        return going

    def _woken(self, wake: SimpleQueue[str], seconds: float) -> bool:
        """Let lines gather; tell whether the thread goes on."""
        until = monotonic() + seconds
        with suppress(Empty):
            while wake.get(timeout=max(0.0, until - monotonic())) is CMD_WRITE:
                pass
            return False
        return True

    def _run_maintenance(self, file: LogFile, wake: SimpleQueue[str]) -> bool:
        """Do the work on rotated files half of the time; write what comes meanwhile."""
        while True:
            begun = monotonic()
            if not file.run_maintenance():
                break
            going = self._woken(wake, min(monotonic() - begun, BATCH_DELAY))
            self._awake = False
            self._drain(None)
            if not going:
                return False
        if not len(file):  # pragma: no branch - a caller in a hurry may have left lines to us meanwhile
            self._files.pop(file, None)
        return True

    def _is_held_back(self) -> bool:
        """Tell whether something waits for standard output, or for the lock of a file."""
        return bool(len(self._backlog) or self._output.partial_line or any(map(len, self._files)))

    def _drain(self, patience: float | None) -> bool:
        """Write everything that waits; tell whether it was our turn.

        The writer's thread, without `patience`, waits for locks only; others for `patience` seconds in all.
        """
        if self._owner == threading.get_ident():  # inside our own write: its loop, or the thread, comes to this line
            self._wake_thread()
            return False
        deadline = None if patience is None else monotonic() + patience
        while True:
            if not self._write_once(deadline):
                self._wake_thread()
                return False
            if deadline is None or not (len(self._backlog) or self._output.partial_line):
                return True
            left = deadline - monotonic()
            if self._stuck or left <= 0:
                self._stuck = True
                self._wake_thread()
                return True
            self._safely(self._output.wait, left)

    def _write_once(self, deadline: float | None) -> bool:
        """Write what can be written without waiting for standard output; tell whether it was our turn."""
        left = -1.0 if deadline is None else 0.0 if self._late else max(0.0, deadline - monotonic())
        if not self._lock.acquire(timeout=left):
            self._late = True  # who comes next does not wait as long once more
            return False
        try:
            self._owner = threading.get_ident()
            self._late = False
            self._safely(self._pump)
            while self._queue and self._safely(self._write_batch, deadline):
                pass
            if self._files:
                self._safely(self._write_files, {}, deadline)
        finally:
            self._owner = 0
            self._lock.release()
        return True

    def _write_batch(self, deadline: float | None) -> bool:
        queue = self._queue
        lines: list[bytes] = []
        levels: list[int] = []
        files: dict[LogFile, list[bytes]] = {}
        for _ in range(len(queue)):
            line, file, copy, level = queue.popleft()
            if not isinstance(copy, bytes):
                try:
                    line = copy = copy(line)
                except Exception:  # noqa: BLE001 - one line that cannot be encoded must not take the others with it
                    self._lose_one(file)
                    continue
            lines.append(line)
            levels.append(level)
            if file is not None:
                files.setdefault(file, []).append(copy)
        self._bytes = 0
        if files:
            self._write_files(files, deadline)
        self._put(lines, levels)
        return True

    def _lose_one(self, file: LogFile | None) -> None:
        self.lost["internal"] += 1
        if file is not None:
            file.dropped["internal"] += 1

    def _write_files(self, files: dict[LogFile, list[bytes]], deadline: float | None) -> None:
        for file in self._files.keys() - files.keys():
            if len(file):
                files[file] = []
        for file, lines in files.items():
            if file.write(lines, None if deadline is None else max(0.0, deadline - monotonic())):
                self._files[file] = None
                self._wake_thread()

    def _put(self, lines: list[bytes], levels: list[int]) -> None:
        """Offer lines to standard output; let those wait that it does not take."""
        if not len(self._backlog):
            count = self._offer(lines)
            if count == len(lines):
                return
            lines, levels = lines[count:], levels[count:]
        for line, level in zip(lines, levels, strict=True):
            self._backlog.add(line, level)
        self._pump()

    def _pump(self) -> None:
        """Offer what waits for standard output."""
        while len(self._backlog) or self._output.partial_line:
            if not self._output.wait(0.0):
                return
            waiting = self._backlog.take(CHUNK_SIZE)
            count = self._offer([line for _, _, line in waiting])
            if count < len(waiting) or (self._output.partial_line and not waiting):
                self._backlog.put_back(waiting[count:])
                return
        self._stuck = False

    def _offer(self, lines: list[bytes]) -> int:
        """Offer lines to standard output; return how many are no longer ours to write: taken or lost."""
        output = self._output
        before, offered = output.lines_written, len(lines) + bool(output.partial_line)
        try:
            return output.offer(lines)
        except Exception:  # noqa: BLE001 - a broken, closed or missing standard output is no reason to fail a caller
            self.lost["write"] += offered - (output.lines_written - before) - bool(output.partial_line)
            return len(lines)
        finally:
            self.written += output.lines_written - before
