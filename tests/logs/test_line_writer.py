"""The queue of lines and its thread: nothing blocks, nothing raises, every line is written or counted."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import sys
import textwrap
import threading
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastapi_observe.logs import writer as line_writer
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.stdout import StandardOutput
from fastapi_observe.logs.writer import Backlog, LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Stream(io.TextIOWrapper):
    """A standard output that collects what is written."""

    def __init__(self) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding="utf-8")

    def text(self) -> str:
        """Return what was written."""
        return self.raw_bytes.getvalue().decode()


def standard_output(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Replace standard output from within the test: pytest sets its own after the fixtures."""
    found = Stream()
    monkeypatch.setattr(sys, "stdout", found)
    return found


@pytest.fixture
def writer() -> Iterator[LineWriter]:
    """Return an open writer, closed at the end."""
    found = LineWriter()
    found.open()
    yield found
    found.close()


def threads() -> int:
    """Count the writers' threads."""
    return sum(thread.name == "fastapi-observe-log-writer" for thread in threading.enumerate())


def until(condition: Any) -> None:
    """Wait until `condition()` holds."""
    waiting = threading.Event()
    for _ in range(500):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it never happened")


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `script` in a process of its own."""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_lines_are_written_by_the_thread(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line starts the thread, which writes without a call to `flush`."""
    stream = standard_output(monkeypatch)
    assert threads() == 0
    for number in range(100):
        writer.write(b"%d\n" % number)
    assert threads() == 1
    until(lambda: writer.written == 100)
    assert stream.text() == "".join(f"{number}\n" for number in range(100))
    assert len(writer) == 0


def test_an_urgent_line_is_written_at_once_and_in_order(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an urgent write returns, this line and all before it are written."""
    stream = standard_output(monkeypatch)
    writer.write(b"first\n")
    writer.write(b"second\n", urgent=True)
    assert stream.text() == "first\nsecond\n"


def test_flush_and_close(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flush` empties the queue, `close` ends the thread; then lines are written at once, until `open`."""
    stream = standard_output(monkeypatch)
    writer.write(b"a\n")
    assert writer.flush(1.0)
    assert stream.text() == "a\n"
    writer.write(b"b\n")
    writer.close()
    assert threads() == 0
    writer.write(b"c\n")
    assert stream.text() == "a\nb\nc\n"
    writer.close()
    writer.open()
    writer.open()
    writer.write(b"d\n")
    assert threads() == 1


def test_a_line_may_be_encoded_later(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is encoded by the thread, or by the caller of a closed writer; a full queue drops it."""
    stream = standard_output(monkeypatch)
    writer.enqueue("gathered", lambda record: f"{record}\n".encode())
    writer.enqueue("too", lambda record: f"{record}\n".encode())
    writer.close()
    writer.enqueue("direct", lambda record: f"{record}\n".encode())
    assert stream.text() == "gathered\ntoo\ndirect\n"
    full = LineWriter(0)
    full.enqueue("lost", lambda _: b"")
    assert (full.dropped, full.written) == (1, 0)


def test_a_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is either written or counted as dropped."""
    standard_output(monkeypatch)
    writer = LineWriter(limit=10)
    writer.open()
    with writer._lock:
        for _ in range(15):
            writer.write(b"x\n")
    writer.close()
    assert (writer.written, writer.dropped) == (10, 5)


def test_standard_output_is_looked_up_at_each_write(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirection gets the lines, also to a stream without bytes."""
    redirected = io.StringIO()
    monkeypatch.setattr(sys, "stdout", redirected)
    writer.write("é\n".encode(), urgent=True)
    assert redirected.getvalue() == "é\n"


class Broken(io.StringIO):
    """A stream that raises."""

    def __init__(self, exc: Exception) -> None:
        super().__init__()
        self.exc = exc

    def write(self, text: str) -> int:
        """Refuse."""
        raise self.exc


@pytest.mark.parametrize(
    "broken",
    [None, Broken(BrokenPipeError()), Broken(BlockingIOError()), Broken(ValueError("closed"))],
    ids=["none", "pipe", "blocking", "closed"],
)
def test_a_broken_standard_output_never_raises(
    writer: LineWriter, monkeypatch: pytest.MonkeyPatch, broken: io.StringIO | None
) -> None:
    """Lines that standard output refuses are counted as dropped."""
    monkeypatch.setattr(sys, "stdout", broken)
    writer.write(b"x\n")
    writer.write(b"y\n", urgent=True)
    assert (writer.written, writer.dropped) == (0, 2)


def test_a_line_written_while_writing_is_not_lost(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that logs while it is written to causes no deadlock; its line follows."""

    class Chatty(io.StringIO):
        def write(self, text: str) -> int:
            if "again" not in text:
                writer.write(b"again\n", urgent=True)
            return super().write(text)

    chatty = Chatty()
    monkeypatch.setattr(sys, "stdout", chatty)
    writer.write(b"x\n", urgent=True)
    assert chatty.getvalue() == "x\nagain\n"


def test_an_urgent_line_does_not_wait_for_a_stuck_writer(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another thread hangs in a write, an urgent line is left to that thread."""
    stream = standard_output(monkeypatch)
    writer.max_block = 0.001
    with writer._lock:
        writer.write(b"x\n", urgent=True)
        assert not writer.flush(0.001)
        assert stream.text() == ""
    until(lambda: stream.text() == "x\n")


def test_without_threads_lines_are_written_at_once(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of threads is reached."""
    stream = standard_output(monkeypatch)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer.write(b"x\n")
    writer.write(b"y\n")
    assert stream.text() == "x\ny\n"


def test_only_one_thread_starts(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is running is kept."""
    standard_output(monkeypatch)
    writer.write(b"x\n")
    writer._start_thread()
    assert threads() == 1


class Log:
    """A log file that collects its lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, lines: list[bytes]) -> None:
        """Collect lines."""
        self.lines += lines


def test_files_get_their_copies(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line goes to its file first, then to standard output."""
    stream = standard_output(monkeypatch)
    log: Any = Log()
    writer.write(b"shown\n", file=log, copy=b"kept\n", urgent=True)
    writer.write(b"only shown\n", urgent=True)
    assert log.lines == [b"kept\n"]
    assert stream.text() == "shown\nonly shown\n"


def test_threads_and_urgent_lines_lose_nothing(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of several threads, urgent or not, are complete and in the order of each thread."""
    stream = standard_output(monkeypatch)

    def work(name: int) -> None:
        for number in range(200):
            writer.write(b"%d %d\n" % (name, number), urgent=number % 50 == 0)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert writer.flush(5.0)
    rows = [tuple(map(int, row.split())) for row in stream.text().splitlines()]
    assert len(rows) == writer.written == 800
    for name in range(4):
        assert [number for who, number in rows if who == name] == list(range(200))


@contextmanager
def pipe_as_standard_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make standard output a real pipe. Yields the end to read from."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        yield reading
        monkeypatch.undo()


def test_a_stopped_reader_does_not_stop_the_caller(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing reads the pipe, urgent writes return; when it is read again, every line is complete."""
    writer.max_block = 0.01
    with pipe_as_standard_output(monkeypatch) as reading:
        for number in range(100):
            writer.write(b"%d " % number + b"x" * 2000 + b"\n", urgent=True)
        assert not writer.flush(0.01)
        got = b""
        while got.count(b"\n") < 100:
            got += os.read(reading, 65536)
        until(lambda: writer.flush(1.0))
        os.close(reading)
    rows = [row.split() for row in got.splitlines()]
    assert [int(number) for number, _ in rows] == list(range(100))
    assert {len(rest) for _, rest in rows} == {2000}
    assert (writer.written, writer.dropped) == (100, 0)


def test_queued_lines_go_to_the_new_standard_output(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that replaces a full pipe gets the lines."""
    writer.max_block = 0.0
    with pipe_as_standard_output(monkeypatch) as reading:
        writer.write(b"a" * 70_000 + b"\n", urgent=True)
        writer.write(b"b\n", urgent=True)
        os.read(reading, 1)
        os.close(reading)
    stream = standard_output(monkeypatch)
    assert writer._output.wait(0.0)
    writer.write(b"c\n")
    until(lambda: "c\n" in stream.text())
    assert writer.flush(1.0)
    assert writer.written + writer.dropped == 3


def test_the_backlog_is_written_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that standard output did not take go out before newer ones."""
    writer = LineWriter()
    with pipe_as_standard_output(monkeypatch) as reading:
        writer.max_block = 0.0
        writer.write(b"a" * 100_000 + b"\n")
        writer.write(b"b\n")
        assert len(writer) == 2
        assert not writer.flush(0.0)
        got = b""
        while not got.endswith(b"\nb\n"):
            got += os.read(reading, 65536)
            writer.flush(0.0)
        os.close(reading)
    assert got == b"a" * 100_000 + b"\nb\n"


def test_the_backlog_drops_the_lowest_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bounded in lines and bytes; what is kept stays in order."""
    writer = LineWriter()
    writer.max_block = 0.0
    writer._backlog = Backlog(max_lines=6, max_bytes=960)
    with pipe_as_standard_output(monkeypatch) as reading:
        writer.write(b"a" * 70_000 + b"\n")
        for number in range(4):
            writer.write(b"debug %d\n" % number, level=10)
            writer.write(b"info %d\n" % number, level=20)
        writer.write(b"debug 4\n", level=10)
        writer.write(b"e" * 950 + b"\n", level=40)
        writer.write(b"error\n", level=40)
        assert writer.tally() == (0, {"queue_full": 9, "stdout_write": 0, "internal_error": 0}, 3)
        assert writer.dropped == 9
        got = b""
        while not got.endswith(b"\nerror\n"):
            got += os.read(reading, 65536)
            writer.flush(0.0)
        os.close(reading)
    assert [line[:7] for line in got.splitlines()[1:]] == [b"e" * 7, b"error"]
    assert (writer.written, len(writer)) == (3, 0)


def test_a_reader_that_ends_in_the_middle_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the line is lost with the queued lines, and each is counted once."""
    writer = LineWriter()
    writer.max_block = 0.0
    with pipe_as_standard_output(monkeypatch) as reading:
        writer.write(b"a" * 100_000 + b"\n")
        writer.write(b"b\n")
        assert (len(writer), writer.dropped) == (2, 0)
        os.close(reading)
        assert writer.flush(0.0)
    assert (writer.written, writer.dropped, len(writer)) == (0, 2, 0)


def test_a_standard_output_without_room_completes_its_line_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk loses lines, but the rest of a line that was started is written when there is room."""
    writer = LineWriter()
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        real, room = os.write, [3]

        def full(descriptor: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "full")
            taken = real(descriptor, data[: room[0]])
            room[0] -= taken
            return taken

        writer.max_block = 0.0
        monkeypatch.setattr(os, "write", full)
        writer.write(b"abcdef\n")
        writer.write(b"lost\n")
        assert (writer.written, writer.dropped, len(writer)) == (0, 1, 1)
        monkeypatch.setattr(os, "write", real)
        writer.write(b"next\n")
        assert (tmp_path / "out").read_bytes() == b"abcdef\nnext\n"
        monkeypatch.undo()
    assert (writer.written, writer.dropped, len(writer)) == (2, 1, 0)


def test_a_partial_write_is_counted_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole lines are counted, the rest of the interrupted one is kept, the others are offered again."""
    output = StandardOutput()
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        real = os.write
        for room, count, rest in ((5, 2, b"ef\n"), (3, 0, b""), (3, 1, b"")):
            monkeypatch.setattr(os, "write", lambda descriptor, data, room=room: real(descriptor, data[:room]))
            lines = [b"ab\n", b"cdef\n", b"g\n"] if not output.lines_written else [b"g\n"]
            if room == 3 and output.partial_line:
                monkeypatch.setattr(
                    os, "write", lambda descriptor, data: real(descriptor, data) if data != b"g\n" else 0
                )
            assert (output.offer(lines), output.partial_line) == (count, rest)
        monkeypatch.undo()
    assert ((tmp_path / "out").read_bytes(), output.lines_written) == (b"ab\ncdef\ng\n", 3)


@pytest.mark.parametrize("kind", ["another user's pipe", "socket", "terminal"])
def test_other_kinds_of_standard_output(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Pipes that cannot be opened again, sockets and terminals block no caller."""
    writer = LineWriter()
    writer.max_block = 0.01
    lines = [b"%d " % number + b"x" * 5000 + b"\n" for number in range(300)]
    if kind == "socket":
        one, other = socket.socketpair()
        reading, writing = one.detach(), other.detach()
    else:
        reading, writing = os.openpty() if kind == "terminal" else os.pipe()
    if kind == "terminal":
        tty.setraw(writing)
    if kind == "another user's pipe":
        real = os.open

        def refuse(path: Any, flags: int) -> int:
            raise PermissionError(path, real, flags)

        monkeypatch.setattr(os, "open", refuse)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        for line in lines:
            writer.write(line)
        assert len(writer) > 10
        got = b""
        while got.count(b"\n") < 300:
            writer.flush(0.0)
            got += os.read(reading, 65536)
        writer.flush(0.0)
        os.close(reading)
        monkeypatch.undo()
    assert got == b"".join(lines)
    assert (writer.written, writer.dropped, len(writer)) == (300, 0, 0)


def test_a_line_that_cannot_be_encoded_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For standard output and for its file; other lines are written."""
    stream = standard_output(monkeypatch)
    file = LogFile(str(tmp_path / "app.log"), None, None, compress=False, on_internal_error=print)
    writer = LineWriter()
    with writer._lock:
        writer.open()
        writer.enqueue(1, str.encode, file)
        writer.enqueue(1, str.encode)
        writer.enqueue("x", str.encode, file)
    writer.close()
    assert stream.text() == "x"
    assert writer.tally() == (1, {"queue_full": 0, "stdout_write": 0, "internal_error": 2}, 0)
    assert writer.file_tally(file) == (1, {"queue_full": 0, "file_write": 0, "internal_error": 1}, 0)


def test_errors_have_room_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full queue takes some more errors; refused lines are counted for the file as well."""
    standard_output(monkeypatch)
    file = LogFile(str(tmp_path / "app.log"), None, None, compress=False, on_internal_error=print)
    writer = LineWriter(limit=10)
    writer.open()
    with writer._lock:
        for _ in range(12):
            writer.write(b"x\n", file=file, copy=b"x\n", level=20)
        for _ in range(3):
            writer.write(b"e\n", file=file, copy=b"e\n", level=40)
        writer.enqueue("y", str.encode, file)
        assert len(writer) == 11
        monkeypatch.setattr(line_writer, "COUNT_TIMEOUT", 0.0)
        assert writer.file_tally(file) == (0, {"queue_full": 5, "file_write": 0, "internal_error": 0}, 11)
    writer.close()
    assert (writer.written, writer.dropped) == (11, 5)
    writer.open()
    with writer._lock:
        for _ in range(5):
            writer.write(b"x" * (3 << 20))
        assert len(writer) == 3
    writer.close()
    assert (writer.written, writer.dropped) == (14, 7)


def test_a_closed_pipe_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing reads the pipe any more, lines are dropped and counted; standard error has one message about it."""
    writer = LineWriter()
    with pipe_as_standard_output(monkeypatch) as reading:
        os.close(reading)
        for _ in range(3):
            writer.write(b"x\n")
    assert (writer.written, writer.dropped) == (0, 3)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("fastapi-observe: nothing reads standard output any more (broken pipe); log lines are")


def test_a_standard_output_that_is_closed_with_lines_queued(tmp_path: Path) -> None:
    """They are counted as lost; the thread and the log file go on, and the exit is silent."""
    done = run(
        f"""
        import os, sys, threading, time
        from fastapi_observe.logs.writer import LineWriter
        from fastapi_observe.logs.file.file import LogFile
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        writer, path = LineWriter(), {str(tmp_path / "app.log")!r}
        writer.open()
        file = LogFile(path, None, None, compress=False, on_internal_error=print)
        line = b"x" * 99 + b"\\n"
        for _ in range(2000):
            writer.write(line, file=file, copy=line)
        writer.flush(0.05)
        assert len(writer)
        sys.stdout.close()
        writer.write(b"later\\n", file=file, copy=b"later\\n")
        until = time.monotonic() + 20
        while writer.tally()[2] and time.monotonic() < until:  # `len` does not see what is being written
            time.sleep(0.01)
        assert writer.dropped and writer.written + writer.dropped == 2001, (writer.written, writer.dropped_by_reason)
        assert open(path, "rb").read() == line * 2000 + b"later\\n"
        assert any(thread.name == "fastapi-observe-log-writer" for thread in threading.enumerate())
        """
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_standard_output_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written to as a stream."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    LineWriter().write(b"x\n")
    assert stream.getvalue() == "x\n"


@pytest.mark.parametrize("step", ["_write_backlog", "_write_batch", "_write_stdout", "_collect"])
def test_an_internal_error_ends_neither_thread_nor_caller(
    writer: LineWriter, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It is reported, and later lines are written."""
    stream = standard_output(monkeypatch)
    reported: list[str] = []
    writer.on_internal_error = lambda site, _: reported.append(site)
    log: Any = Log()
    real = getattr(writer, step)

    def fail(*_given: Any) -> Any:
        monkeypatch.setattr(writer, step, real)
        raise RuntimeError(step)

    writer.write(b"x\n", file=log)
    monkeypatch.setattr(writer, step, fail)
    writer.write(b"y\n", file=log)
    until(lambda: reported)
    writer.write(b"z\n", urgent=True, file=log)
    until(lambda: stream.text().endswith("z\n"))
    assert reported == ["logs.writer"]
    assert threads() == 1


def test_a_thread_that_has_ended_is_replaced(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line starts another."""
    stream = standard_output(monkeypatch)
    monkeypatch.setattr(threading, "excepthook", lambda _found: None)

    def leave(_line: bytes) -> bytes:
        raise SystemExit

    writer.enqueue(b"", leave)
    until(lambda: writer._thread is not None and not writer._thread.is_alive())
    writer.write(b"x\n")
    until(lambda: stream.text() == "x\n")
    assert threads() == 1


def test_the_exit_is_silent(writer: LineWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error at exit is reported, not raised."""
    reported: list[str] = []
    writer.on_internal_error = lambda site, _: reported.append(site)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "flush", lambda _timeout: 1 / 0)
        writer._close_at_exit()
    assert reported == ["logs.writer"]


def test_a_file_as_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is always ready."""
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        LineWriter().write(b"x\n")
        assert (tmp_path / "out").read_bytes() == b"x\n"
        monkeypatch.undo()


def test_queued_lines_are_written_at_exit() -> None:
    """A process that ends without `close` loses no line, nor those of other exit handlers."""
    done = run(
        """
        import atexit
        from fastapi_observe.logs.writer import LineWriter
        writer = LineWriter()
        atexit.register(lambda: writer.write(b"last\\n"))
        writer.open()
        writer.write(b"x\\n")
        """
    )
    assert done.stdout == "x\nlast\n"


def test_fork() -> None:
    """A forked child starts with an empty queue; the parent writes its own lines."""
    done = run(
        """
        import os
        from fastapi_observe.logs.writer import LineWriter
        gone = LineWriter()
        del gone
        writer = LineWriter()
        writer.open()
        for number in range(20):
            writer.write(b"parent %d\\n" % number)
            child = os.fork()
            if not child:
                writer.write(b"child %d\\n" % number)
                writer.flush(1.0)
                os._exit(0)
            os.waitpid(child, 0)
        writer.close()
        """
    )
    rows = done.stdout.splitlines()
    assert sorted(rows) == sorted(f"{who} {number}" for who in ("parent", "child") for number in range(20))


def test_a_forked_child_writes_at_once() -> None:
    """A child that ends with `os._exit`, as those of multiprocessing do, loses nothing; after `open` it queues."""
    done = run(
        """
        import os, threading
        from fastapi_observe.logs.writer import LineWriter
        writer = LineWriter()
        writer.open()
        child = os.fork()
        if not child:
            writer.write(b"child\\n")
            assert threading.active_count() == 1
            writer._wake_thread()  # a file has work for the thread, which there is not
            for _ in range(2):
                writer.open()
                writer.write(b"worker\\n")
            assert threading.active_count() == 2
            assert writer.flush(1.0)
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    assert done.stdout == "child\nworker\nworker\n"
    assert done.stderr == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_inside_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork from inside a write neither hangs nor releases the writer's own lock."""
    writer = LineWriter()

    class Forking(io.StringIO):
        def write(self, text: str) -> int:
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
            return super().write(text)

    forking = Forking()
    monkeypatch.setattr(sys, "stdout", forking)
    writer.write(b"x\n")
    assert forking.getvalue() == "x\n"
    assert not writer._lock.locked()
