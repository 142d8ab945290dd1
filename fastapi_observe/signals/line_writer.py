"""The queue of finished log lines and the thread that writes them to standard output and to files."""

from __future__ import annotations

import atexit
import os
import select
import stat
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.signals.log_file import LogFile

QUEUE_LINES: Final = 10_000
"""Most lines that wait; more are dropped and counted."""

BATCH_DELAY: Final = 0.025
"""Seconds that the thread lets lines gather before it writes them."""

PATIENCE: Final = 0.05
"""Seconds that an urgent line may wait for a standard output that takes nothing."""

PIPE_PIECE: Final = 4096
"""Bytes that a pipe takes without blocking once it says that it is ready (PIPE_BUF on Linux)."""


WRITE: Final = "write"
END: Final = "end"
"""What the thread is woken up for."""


class LineWriter:
    """Writes lines to `sys.stdout`, as it is at that moment, and to log files, in the order of the calls.

    `write` costs the caller an append; a daemon thread, started with the first line, writes in batches. Urgent lines
    are written before `write` returns. `written` counts lines that standard output took, `dropped` those that it
    refused, that found the queue full or that could not be encoded. After `close`, and in a forked child, every line is
    written at once, until `open`.
    """

    def __init__(self, limit: int = QUEUE_LINES) -> None:
        self.written = 0
        self.dropped = 0
        self._limit = limit
        self._direct = True
        self._renew()
        self._hold_at_fork()

    def _renew(self) -> None:
        self._queue: deque[tuple[Any, LogFile | None, bytes | Callable[[Any], bytes]]] = deque()
        self._lock = threading.Lock()
        self._lifetime = threading.RLock()
        self._owner = 0
        self._forking = False
        self._rest = b""
        self._stuck = False
        self._awake = False
        self._busy_files: dict[LogFile, None] = {}
        self._thread: threading.Thread | None = None
        # The one queue of the standard library that a signal handler or `__del__` may use in the middle of itself.
        self._wake: SimpleQueue[str] = SimpleQueue()

    def _hold_at_fork(self) -> None:
        """Fork only between two writes; the child begins with nothing of its parent's."""
        if not hasattr(os, "register_at_fork"):  # pragma: no cover - Windows cannot fork
            return
        reference = weakref.ref(self)

        def call(method: Callable[[LineWriter], None]) -> Callable[[], None]:
            def run() -> None:
                writer = reference()
                if writer is not None:
                    method(writer)

            return run

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
        return len(self._queue)

    def write_later(self, record: Any, encode: Callable[[Any], bytes], file: LogFile | None = None) -> None:
        """Write what `encode(record)` returns, to standard output and to `file`; most often the thread calls it."""
        queue = self._queue
        if len(queue) >= self._limit:
            self.dropped += 1
            return
        queue.append((record, file, encode))
        if self._direct:
            self._drain(0.0 if self._stuck else PATIENCE)
        elif not self._awake:
            self._wake_thread()

    def write(self, line: bytes, *, urgent: bool = False, file: LogFile | None = None, copy: bytes = b"") -> None:
        """Write `line` to standard output and `copy` to `file`. Never raises, never blocks for longer than 0.05 s."""
        queue = self._queue
        if len(queue) >= self._limit:
            self.dropped += 1
            return
        queue.append((line, file, copy))
        if urgent or self._direct:
            self._drain(0.0 if self._stuck else PATIENCE)
        elif not self._awake:
            self._wake_thread()

    def open(self) -> None:
        """Let lines gather for the thread from now on."""
        if self._direct:
            self._direct = self._awake = False
            atexit.unregister(self.close)  # a forked child has its parent's
            atexit.register(self.close)

    def flush(self, timeout: float) -> bool:
        """Write what waits, for at most about `timeout` seconds; tell whether nothing is left."""
        return self._drain(timeout) and not self._queue and not self._rest

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits and end the thread; lines that still come are written at once."""
        with self._lifetime:
            self._direct = True
            atexit.unregister(self.close)
            thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.put(END)
            thread.join(timeout)
        self._drain(timeout)

    def _wake_thread(self) -> None:
        self._awake = True
        if self._thread is None and not self._direct:
            self._start_thread()
        self._wake.put(WRITE)

    def _start_thread(self) -> None:
        with self._lifetime:
            if self._thread is not None or self._direct:
                return
            thread = threading.Thread(
                target=self._run, args=(self._wake,), name="fastapi-observe-log-writer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no new threads: the interpreter ends, or the limit is reached
                self._direct = True
                self._drain(PATIENCE)
                return
            self._thread = thread

    def _run(self, wake: SimpleQueue[str]) -> None:
        going = True
        while going:
            going = wake.get() is WRITE
            with suppress(Empty):
                going = going and wake.get(timeout=BATCH_DELAY) is WRITE
            self._awake = False
            self._drain(None)
            for file in list(self._busy_files):
                while file.tend():
                    self._drain(None)
                self._busy_files.pop(file, None)

    def _drain(self, patience: float | None) -> bool:
        """Write everything that waits; tell whether it was our turn.

        Only the writer's thread, without `patience`, may block on standard output.
        """
        if self._owner == threading.get_ident():  # inside our own write: its loop, or the thread, comes to this line
            self._wake_thread()
            return False
        deadline = None if patience is None else monotonic() + patience
        if not self._lock.acquire(timeout=-1 if patience is None else patience):
            self._stuck = True
            self._wake_thread()
            return False
        try:
            self._owner = threading.get_ident()
            if self._rest:
                self._put(b"", 0, deadline)
            while self._queue and (deadline is None or not self._rest):
                self._write_batch(deadline)
        finally:
            self._owner = 0
            self._lock.release()
        return True

    def _write_batch(self, deadline: float | None) -> None:
        queue = self._queue
        lines: list[bytes] = []
        files: dict[LogFile, list[bytes]] = {}
        for _ in range(len(queue)):
            line, file, copy = queue.popleft()
            if not isinstance(copy, bytes):
                line = copy = copy(line)
            lines.append(line)
            if file is not None:
                files.setdefault(file, []).append(copy)
        for file, copies in files.items():
            if file.write(copies):
                self._busy_files[file] = None
                self._wake_thread()
        self._put(b"".join(lines), len(lines), deadline)

    def _put(self, data: bytes, count: int, deadline: float | None) -> None:
        """Write `data`, after what an impatient caller had to leave."""
        data, self._rest = self._rest + data, b""
        stream: Any = sys.stdout
        try:
            pipe = None if deadline is None else _pipe_of(stream)
            if pipe is not None and deadline is not None:
                self._rest = _write_while_ready(pipe, data, deadline)
                self._stuck = bool(self._rest)
                if self._stuck:
                    self._wake_thread()
            else:
                binary = getattr(stream, "buffer", None)
                if binary is None:
                    stream.write(data.decode("utf-8", "replace"))
                    stream.flush()
                else:
                    binary.write(data)
                    binary.flush()
                self._stuck = False
        except Exception:  # noqa: BLE001 - a broken, closed or missing standard output is no reason to fail a caller
            self.dropped += count
        else:
            self.written += count


def _pipe_of(stream: Any) -> int | None:
    """Return the file descriptor of a standard output that could block for ever; None for files and replacements."""
    if sys.__stdout__ is None or stream is not sys.__stdout__ or not hasattr(select, "poll"):
        return None
    descriptor = sys.__stdout__.fileno()
    return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor


def _write_while_ready(descriptor: int, data: bytes, deadline: float) -> bytes:
    """Write `data` piece by piece until `deadline` (monotonic); return what is left."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data and poll.poll(max(0.0, deadline - monotonic()) * 1000):
        data = data[os.write(descriptor, data[:PIPE_PIECE]) :]
    return data
