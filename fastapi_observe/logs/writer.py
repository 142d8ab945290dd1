"""The queue of log lines and the thread that writes them to standard output and to the log file."""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import sleep
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.export.counts import Counts
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import register_at_exit, register_at_fork
from fastapi_observe.logs.stdout import StandardOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.logs.file.file import LogFile

MAX_QUEUED_LINES: Final = 10_000
"""Maximum of lines in the queue, and in the backlog. For lines of level error, the queue takes a tenth more."""

MAX_QUEUED_BYTES: Final = 8 << 20
"""Maximum of bytes in the queue, and in the backlog."""

BATCH_DELAY: Final = 0.025
"""Seconds for which the thread collects lines before it writes them."""

RETRY_DELAY: Final = 0.005
"""Seconds between two attempts to write to a standard output that is slow."""

MAX_BLOCK: Final = 0.05
"""Default of `LineWriter.max_block`, in seconds."""

CHUNK_SIZE: Final = 1 << 16
"""Bytes that are taken from the backlog at a time."""

COUNT_TIMEOUT: Final = 0.1
"""Seconds for which counting waits for a write to end."""

INFO: Final = 20
ERROR: Final = 40
"""Level numbers of `logging`."""

WRITER_THREAD_NAME: Final = "fastapi-observe-log-writer"

CMD_WRITE: Final = "write"
CMD_END: Final = "end"
"""Messages to the thread."""


class QueuedLine(NamedTuple):
    """A line in the backlog, with its position among all lines."""

    position: int
    level: int
    line: bytes


class Backlog:
    """Lines that standard output has not taken yet, in order.

    If it is full, the oldest line of the lowest level is dropped. `dropped` counts these lines.
    """

    def __init__(self, max_lines: int = MAX_QUEUED_LINES, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.dropped = 0
        self.size = 0
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._count = 0
        self._next_position = 0
        self._levels: dict[int, deque[QueuedLine]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, line: bytes, level: int) -> None:
        """Append a line. If the backlog is full, drop a line of a lower level, or else this one."""
        while self._count >= self._max_lines or (self.size + len(line) > self._max_bytes):
            lowest = min((each for each, lines in self._levels.items() if lines), default=level)
            self.dropped += 1
            if lowest >= level:
                return
            self._subtract(self._levels[lowest].popleft())
        self._next_position += 1
        self._levels.setdefault(level, deque()).append(QueuedLine(self._next_position, level, line))
        self._count += 1
        self.size += len(line)

    def take(self, size: int) -> list[QueuedLine]:
        """Remove and return the first lines, `size` bytes together, or a single longer one."""
        taken: list[QueuedLine] = []
        while self._count:
            first = min((lines for lines in self._levels.values() if lines), key=lambda lines: lines[0].position)
            size -= len(first[0].line)
            if taken and size < 0:
                break
            taken.append(first.popleft())
            self._subtract(taken[-1])
        return taken

    def put_back(self, lines: list[QueuedLine]) -> None:
        """Return lines that were taken to the front."""
        for each in reversed(lines):
            self._levels[each.level].appendleft(each)
            self._count += 1
            self.size += len(each.line)

    def _subtract(self, line: QueuedLine) -> None:
        self._count -= 1
        self.size -= len(line.line)


class LineWriter:
    """Writes lines to the current `sys.stdout` and to log files, in the order of the calls.

    A call appends to a queue; a daemon thread, started with the first line, writes in batches. Urgent lines, and those
    before them, are written before `write` returns. Each line goes to its file first; lines that standard output does
    not take at once go to the `Backlog`, so that a slow reader blocks neither thread nor caller. After `close`, and in
    a forked child, each line is written at once (`_direct`), until `open`.

    `limit` is the maximum of lines in the queue. `max_block` is the time in seconds that an urgent line may block its
    caller, because standard output or another writer is slow. `written` counts lines that standard output took,
    `dropped_by_reason` those that it did not.
    Internal errors are passed to `on_internal_error`; they end neither the thread nor the call of a user.
    """

    def __init__(self, limit: int = MAX_QUEUED_LINES) -> None:
        self.max_block = MAX_BLOCK
        self.written = 0
        self.dropped_by_reason = {"queue_full": 0, "stdout_write": 0, "internal_error": 0}
        self.on_internal_error: Callable[[str, BaseException], Any] = lambda _site, _exc: None
        self._limit = limit
        self._direct = True
        self._broken_pipe_reported = False
        self._undo_exit: Callable[[], None] = lambda: None
        self._reset()
        register_at_fork(
            self, LineWriter._after_fork_in_child, LineWriter._after_fork_in_parent, LineWriter._before_fork
        )

    def _reset(self) -> None:
        # (line, file, line for the file, level) of `write`, (record, file, encoder, level) of `enqueue`. A plain tuple:
        # naming its four items would cost every line a fifth of a microsecond.
        self._queue: deque[tuple[Any, LogFile | None, bytes | Callable[[Any], bytes], int]] = deque()
        self._queued_bytes = 0
        self._backlog = Backlog()
        self._output = StandardOutput()
        # Held by the thread that writes, which then takes the locks of files. `_writing_thread` is its id: a stream
        # that logs while it is written to must not wait for itself.
        self._lock = threading.Lock()
        self._writing_thread = 0
        # Held while a line that found the queue full is counted. Reentrant: a finalizer may log meanwhile.
        self._counting = threading.RLock()
        # Held while the thread is started or ended; `_lock` may be taken inside it, with a time limit.
        self._lifetime = threading.RLock()
        self._locked_for_fork = False
        self._output_blocked = False  # callers do not wait for standard output
        self._lock_timed_out = False  # callers do not wait for the writing thread
        self._awake = False  # the thread has been woken and will see a new line
        self._thread: threading.Thread | None = None
        # The only queue of the standard library that a signal handler or `__del__` may use in the middle of a call.
        self._wake: SimpleQueue[str] = SimpleQueue()

    def _before_fork(self) -> None:
        """Fork between two writes only, so that the child does not inherit half of one."""
        self._locked_for_fork = self._writing_thread != threading.get_ident() and self._lock.acquire(timeout=1.0)

    def _after_fork_in_parent(self) -> None:
        if self._locked_for_fork:
            self._locked_for_fork = False
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        """Forget the parent's lines, which it writes. Write at once: a child that ends with `os._exit` cannot flush."""
        self._reset()
        self._direct = True

    def __len__(self) -> int:
        return len(self._queue) + len(self._backlog) + bool(self._output.partial_line)

    @property
    def dropped(self) -> int:
        """Number of lines that standard output did not get."""
        return sum(self.dropped_by_reason.values()) + self._backlog.dropped

    def counts(self) -> Counts:
        """Return the counts of lines for standard output, read at one moment."""
        with self._paused():
            dropped = {
                **self.dropped_by_reason,
                "queue_full": self.dropped_by_reason["queue_full"] + self._backlog.dropped,
            }
            return _line_counts(self.written, dropped, len(self))

    def file_counts(self, file: LogFile) -> Counts:
        """Return the counts of lines for a file, read at one moment."""
        with self._paused():
            queued = sum(item[1] is file for item in self._queue.copy())
            return _line_counts(file.written, {**file.dropped}, queued)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Wait for a write to end, unless it takes long."""
        held = self._writing_thread != threading.get_ident() and self._lock.acquire(timeout=COUNT_TIMEOUT)
        try:
            yield
        finally:
            if held:
                self._lock.release()

    def enqueue(
        self, record: Any, encode: Callable[[Any], bytes], file: LogFile | None = None, level: int = INFO
    ) -> None:
        """Write the result of `encode(record)`, which the writer's thread calls, to standard output and to `file`."""
        queue = self._queue
        if len(queue) >= self._limit:
            self._drop_newest(file)
            return
        queue.append((record, file, encode, level))
        if self._direct:
            self._drain(self.max_block)
        elif not self._awake:
            self._wake_thread()

    def write(
        self,
        line: bytes,
        *,
        urgent: bool = False,
        file: LogFile | None = None,
        file_line: bytes = b"",
        level: int = INFO,
    ) -> None:
        """Write `line` to standard output and `file_line` to `file`. Never raises.

        They differ where `line` is text for a terminal: `file_line` is the same record as JSON.

        `urgent` is for errors and for lines of the server, whose last ones come right before the process ends.
        Blocks for at most `max_block` seconds, and longer only if the disk of an urgent line's file does.
        """
        queue = self._queue
        if (self._queued_bytes > MAX_QUEUED_BYTES or len(queue) >= self._limit) and not self._has_room_for(level):
            self._drop_newest(file)
            return
        self._queued_bytes += len(line)
        queue.append((line, file, file_line, level))
        if urgent or self._direct:
            self._drain(self.max_block)
        elif not self._awake:
            self._wake_thread()

    def _has_room_for(self, level: int) -> bool:
        """Return whether a full queue takes a line: a tenth more is reserved for errors."""
        return level >= ERROR and len(self._queue) < self._limit * 1.1 and self._queued_bytes <= MAX_QUEUED_BYTES * 1.1

    def _drop_newest(self, file: LogFile | None) -> None:
        with self._counting:
            self.dropped_by_reason["queue_full"] += 1
            if file is not None:
                file.dropped["queue_full"] += 1

    def open(self) -> None:
        """Collect lines for the thread from now on."""
        if self._direct:
            self._direct = self._awake = False
            self._undo_exit()  # a forked child has inherited its parent's
            self._undo_exit = register_at_exit(self, LineWriter._close_at_exit)

    def flush(self, timeout: float) -> bool:
        """Write all queued lines, within about `timeout` seconds. Returns whether nothing is left."""
        self._output_blocked = self._lock_timed_out = False
        return self._drain(timeout) and not len(self)

    def close(self, timeout: float = 1.0) -> None:
        """Write all queued lines and end the thread. Later lines are written at once."""
        with self._lifetime:
            self._direct = True
            self._undo_exit()
            thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.put(CMD_END)
            thread.join(timeout)
        self.flush(timeout)

    def _close_at_exit(self) -> None:
        self._guarded(self.close)

    def _guarded(self, step: Callable[..., Any], *args: Any) -> Any:
        """Call `step` and return its result. If it raises, report an internal error and return None."""
        try:
            return step(*args)
        except Exception as exc:  # noqa: BLE001 - see above
            return self.on_internal_error("logs.writer", exc)

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
            thread = threading.Thread(target=self._run, args=(self._wake,), name=WRITER_THREAD_NAME, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or the limit of threads is reached
                self._direct = True
                self._drain(self.max_block)
                return
            self._thread = thread

    def _run(self, wake: SimpleQueue[str]) -> None:
        try:
            while (running := self._guarded(self._loop_once, wake)) is not False:
                if running is None:
                    self._awake = False
                    sleep(BATCH_DELAY)
        finally:  # however the thread ended, the next line starts another
            self._awake = False

    def _loop_once(self, wake: SimpleQueue[str]) -> bool:
        """Wait for lines and write them. Returns whether the thread goes on."""
        if len(self._backlog) or self._output.partial_line:
            self._output.wait(BATCH_DELAY)
            running = self._collect(wake, RETRY_DELAY)
        else:
            running = wake.get() is CMD_WRITE and self._collect(wake, BATCH_DELAY)
        self._awake = False
        self._drain(None)
        return running

    def _collect(self, wake: SimpleQueue[str], seconds: float) -> bool:
        """Let lines collect for some time. Returns whether the thread goes on."""
        deadline = monotonic() + seconds
        try:
            while wake.get(timeout=max(0.0, deadline - monotonic())) is CMD_WRITE:
                pass
        except Empty:
            return True
        return False

    def _drain(self, timeout: float | None) -> bool:
        """Write the queue and the backlog. Returns whether this thread could write.

        The writer's thread, without a timeout, waits for the lock only; other threads for `timeout` seconds altogether.
        """
        if self._writing_thread == threading.get_ident():  # a nested call: the outer one, or the thread, writes it
            self._wake_thread()
            return False
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if not self._write_once(deadline):
                self._wake_thread()
                return False
            if deadline is None or not (len(self._backlog) or self._output.partial_line):
                return True
            remaining = deadline - monotonic()
            if self._output_blocked or remaining <= 0:
                self._output_blocked = True  # until standard output takes something, no caller waits for it again
                self._wake_thread()
                return True
            self._guarded(self._output.wait, remaining)

    def _write_once(self, deadline: float | None) -> bool:
        """Write what standard output takes without blocking. Returns whether this thread got the lock."""
        timeout = -1.0 if deadline is None else 0.0 if self._lock_timed_out else max(0.0, deadline - monotonic())
        if not self._lock.acquire(timeout=timeout):
            self._lock_timed_out = True  # the next caller does not wait for the same write as long again
            return False
        try:
            self._writing_thread = threading.get_ident()
            self._lock_timed_out = False
            self._guarded(self._write_backlog)
            while self._queue and self._guarded(self._write_batch):
                pass
        finally:
            self._writing_thread = 0
            self._lock.release()
        return True

    def _write_batch(self) -> bool:
        queue = self._queue
        lines: list[bytes] = []
        levels: list[int] = []
        files: dict[LogFile, list[bytes]] = {}
        for _ in range(len(queue)):
            line, file, file_line, level = queue.popleft()
            if callable(file_line):  # an encoder
                try:
                    line = file_line = file_line(line)
                except Exception:  # noqa: BLE001 - one line that cannot be encoded must not take the others with it
                    self._drop_unencodable(file)
                    continue
            lines.append(line)
            levels.append(level)
            if file is not None:
                files.setdefault(file, []).append(file_line)
        self._queued_bytes = 0
        for log_file, file_lines in files.items():
            log_file.write(file_lines)
        self._write_stdout(lines, levels)
        return True

    def _drop_unencodable(self, file: LogFile | None) -> None:
        self.dropped_by_reason["internal_error"] += 1
        if file is not None:
            file.dropped["internal_error"] += 1

    def _write_stdout(self, lines: list[bytes], levels: list[int]) -> None:
        """Offer lines to standard output, after the backlog. What it does not take goes to the backlog."""
        if not len(self._backlog):
            count = self._offer(lines)
            if count == len(lines):
                return
            lines, levels = lines[count:], levels[count:]
        for line, level in zip(lines, levels, strict=True):
            self._backlog.add(line, level)
        self._write_backlog()

    def _write_backlog(self) -> None:
        while len(self._backlog) or self._output.partial_line:
            if not self._output.wait(0.0):
                return
            chunk = self._backlog.take(CHUNK_SIZE)
            count = self._offer([each.line for each in chunk])
            if count < len(chunk) or (self._output.partial_line and not chunk):
                self._backlog.put_back(chunk[count:])
                return
        self._output_blocked = False

    def _offer(self, lines: list[bytes]) -> int:
        """Offer lines to standard output. Returns how many were taken or dropped."""
        output = self._output
        before, offered = output.lines_written, len(lines) + bool(output.partial_line)
        try:
            return output.offer(lines)
        except Exception as exc:  # noqa: BLE001 - a broken, closed or missing standard output must not fail a caller
            self.dropped_by_reason["stdout_write"] += (
                offered - (output.lines_written - before) - bool(output.partial_line)
            )
            if isinstance(exc, BrokenPipeError):
                self._report_broken_pipe()
            return len(lines)
        finally:
            self.written += output.lines_written - before

    def _report_broken_pipe(self) -> None:
        """Write to standard error, once, that log lines are dropped: standard output cannot show it."""
        if not self._broken_pipe_reported:
            self._broken_pipe_reported = True
            with suppress(Exception):  # standard error may be closed, too
                sys.stderr.write(
                    "fastapi-observe: nothing reads standard output any more (broken pipe); log lines are dropped and "
                    "counted in fastapi_observe_dropped_total. Restart what reads them, or set log_file.\n"
                )
                sys.stderr.flush()


def _line_counts(written: int, dropped: dict[str, int], queued: int) -> Counts:
    return Counts(written + sum(dropped.values()) + queued, written, dropped, queued)
