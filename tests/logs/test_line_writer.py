"""The queue of lines and its thread: nothing blocks, nothing raises, every line is written or counted."""

from __future__ import annotations

import io
import os
import resource
import socket
import threading
import tty
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
from tools import limited, own_standard_output

from fastapi_observe.export.counts import Counts
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.stdout import StandardOutput
from fastapi_observe.logs.writer import Backlog, LineWriter

if TYPE_CHECKING:
    import subprocess
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


def standard_output(during: ExitStack) -> Stream:
    """Replace standard output for the rest of the test."""
    return during.enter_context(redirect_stdout(Stream()))


class Stuck(Stream):
    """A standard output that hangs in its first write until `release` is set."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        super().__init__()

    @property
    def buffer(self) -> Any:
        """Hang, then return the buffer."""
        self.entered.set()
        assert self.release.wait(30)
        return super().buffer


@contextmanager
def stuck_writer(writer: LineWriter) -> Iterator[Stream]:
    """Keep the thread of `writer` in a write, of the line `first`, inside the block."""
    stream = Stuck()
    with redirect_stdout(stream):
        writer.write(b"first\n")
        assert stream.entered.wait(30)
        try:
            yield stream
        finally:
            stream.release.set()
            writer.flush(30)


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


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a process of its own."""
    done = interpreter.run(script)
    assert done.returncode == 0, done.stderr
    return done


def test_lines_are_written_by_the_thread(writer: LineWriter, during: ExitStack) -> None:
    """The first line starts the thread, which writes without a call to `flush`."""
    stream = standard_output(during)
    assert threads() == 0
    for number in range(100):
        writer.write(b"%d\n" % number)
    assert threads() == 1
    until(lambda: writer.written == 100)
    assert stream.text() == "".join(f"{number}\n" for number in range(100))
    assert len(writer) == 0


def test_an_urgent_line_is_written_at_once_and_in_order(writer: LineWriter, during: ExitStack) -> None:
    """When an urgent write returns, this line and all before it are written."""
    stream = standard_output(during)
    writer.write(b"first\n")
    writer.write(b"second\n", urgent=True)
    assert stream.text() == "first\nsecond\n"


def test_flush_and_close(writer: LineWriter, during: ExitStack) -> None:
    """`flush` empties the queue, `close` ends the thread; then lines are written at once, until `open`."""
    stream = standard_output(during)
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


def test_a_line_may_be_encoded_later(writer: LineWriter, during: ExitStack) -> None:
    """A record is encoded by the thread, or by the caller of a closed writer; a full queue drops it."""
    stream = standard_output(during)
    writer.enqueue("gathered", lambda record: f"{record}\n".encode())
    writer.enqueue("too", lambda record: f"{record}\n".encode())
    writer.close()
    writer.enqueue("direct", lambda record: f"{record}\n".encode())
    assert stream.text() == "gathered\ntoo\ndirect\n"
    full = LineWriter(0)
    full.enqueue("lost", lambda _: b"")
    assert (full.dropped, full.written) == (1, 0)


def test_a_full_queue_drops_and_counts() -> None:
    """Every line is either written or counted as dropped."""
    writer = LineWriter(limit=10)
    writer.open()
    with stuck_writer(writer):
        for _ in range(15):
            writer.write(b"x\n")
    writer.close()
    assert (writer.written, writer.dropped) == (11, 5)


def test_standard_output_is_looked_up_at_each_write(writer: LineWriter) -> None:
    """A redirection gets the lines, also to a stream without bytes."""
    with redirect_stdout(io.StringIO()) as redirected:
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
def test_a_broken_standard_output_never_raises(writer: LineWriter, broken: io.StringIO | None) -> None:
    """Lines that standard output refuses are counted as dropped."""
    with redirect_stdout(broken):
        writer.write(b"x\n")
        writer.write(b"y\n", urgent=True)
    assert (writer.written, writer.dropped) == (0, 2)


def test_a_line_written_while_writing_is_not_lost(writer: LineWriter) -> None:
    """A stream that logs while it is written to causes no deadlock; its line follows."""

    class Chatty(io.StringIO):
        def write(self, text: str) -> int:
            if "again" not in text:
                writer.write(b"again\n", urgent=True)
            return super().write(text)

    with redirect_stdout(Chatty()) as chatty:
        writer.write(b"x\n", urgent=True)
    assert chatty.getvalue() == "x\nagain\n"


def test_an_urgent_line_does_not_wait_for_a_stuck_writer(writer: LineWriter) -> None:
    """If another thread hangs in a write, an urgent line is left to that thread."""
    writer.max_block = 0.001
    with stuck_writer(writer) as stream:
        writer.write(b"x\n", urgent=True)
        assert not writer.flush(0.001)
        assert stream.text() == ""
    assert stream.text() == "first\nx\n"


@pytest.mark.usefixtures("no_threads")
def test_without_threads_lines_are_written_at_once(writer: LineWriter, during: ExitStack) -> None:
    """The limit of threads is reached."""
    stream = standard_output(during)
    writer.write(b"x\n")
    writer.write(b"y\n")
    assert stream.text() == "x\ny\n"


class Log:
    """A log file that collects its lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, lines: list[bytes]) -> None:
        """Collect lines."""
        self.lines += lines


def test_files_get_their_copies(writer: LineWriter, during: ExitStack) -> None:
    """A line goes to its file first, then to standard output."""
    stream = standard_output(during)
    log: Any = Log()
    writer.write(b"shown\n", file=log, file_line=b"kept\n", urgent=True)
    writer.write(b"only shown\n", urgent=True)
    assert log.lines == [b"kept\n"]
    assert stream.text() == "shown\nonly shown\n"


def test_threads_and_urgent_lines_lose_nothing(writer: LineWriter, during: ExitStack) -> None:
    """Lines of several threads, urgent or not, are complete and in the order of each thread."""
    stream = standard_output(during)

    def work(name: int) -> None:
        for number in range(200):
            writer.write(b"%d %d\n" % (name, number), urgent=number % 50 == 0)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert threads() == 1
    assert writer.flush(5.0)
    rows = [tuple(map(int, row.split())) for row in stream.text().splitlines()]
    assert len(rows) == writer.written == 800
    for name in range(4):
        assert [number for who, number in rows if who == name] == list(range(200))


@contextmanager
def file_as_standard_output(path: Path) -> Iterator[None]:
    """Make standard output a file."""
    with path.open("w") as file, own_standard_output(os.dup(file.fileno())):
        yield


@contextmanager
def pipe_as_standard_output() -> Iterator[int]:
    """Make standard output a real pipe. Yields the end to read from."""
    reading, writing = os.pipe()
    with own_standard_output(writing):
        yield reading


def test_a_stopped_reader_does_not_stop_the_caller(writer: LineWriter) -> None:
    """If nothing reads the pipe, urgent writes return; when it is read again, every line is complete."""
    writer.max_block = 0.01
    with pipe_as_standard_output() as reading:
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


def test_queued_lines_go_to_the_new_standard_output(writer: LineWriter, during: ExitStack) -> None:
    """A stream that replaces a full pipe gets the lines."""
    writer.max_block = 0.0
    with pipe_as_standard_output() as reading:
        writer.write(b"a" * 70_000 + b"\n", urgent=True)
        writer.write(b"b\n", urgent=True)
        os.read(reading, 1)
        os.close(reading)
    stream = standard_output(during)
    writer.write(b"c\n")
    until(lambda: "c\n" in stream.text())
    assert writer.flush(1.0)
    assert writer.written + writer.dropped == 3


def test_the_backlog_is_written_first() -> None:
    """Lines that standard output did not take go out before newer ones."""
    writer = LineWriter()
    with pipe_as_standard_output() as reading:
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


def test_the_backlog_drops_the_lowest_levels() -> None:
    """It is bounded in lines and bytes; what is kept stays in order."""
    backlog = Backlog(max_lines=6, max_bytes=960)
    for number in range(4):
        backlog.add(b"debug %d\n" % number, 10)
        backlog.add(b"info %d\n" % number, 20)
    kept = b"info 0\ndebug 1\ninfo 1\ndebug 2\ninfo 2\ninfo 3\n"
    assert b"".join(each.line for each in backlog.take(960)) == kept
    backlog.add(b"x" * 900, 20)
    backlog.add(b"info\n", 20)
    backlog.add(b"x" * 56, 20)
    backlog.add(b"e" * 950, 40)
    backlog.add(b"error\n", 40)
    assert [each.line[:5] for each in backlog.take(960)] == [b"e" * 5, b"error"]
    assert (backlog.dropped, len(backlog), backlog.size) == (2 + 3, 0, 0)


def test_a_full_backlog_keeps_errors_and_counts_the_others() -> None:
    """Lines that are dropped from it are among those of the full queue."""
    writer = LineWriter()
    writer.max_block = 0.0
    with pipe_as_standard_output() as reading:
        writer.write(b"a" * 70_000 + b"\n")
        for number in range(10):
            writer.write(b"%d" % number * 1_000_000 + b"\n", level=20)
        writer.write(b"e" * 8_000_000 + b"\n", level=40)
        assert writer.counts() == Counts(12, 0, {"queue_full": 10, "stdout_write": 0, "internal_error": 0}, 2)
        assert writer.dropped == 10
        got = bytearray()
        while not got.endswith(b"e\n"):
            got += os.read(reading, 65536)
            writer.flush(0.0)
        os.close(reading)
    assert [line[:1] for line in got.splitlines()] == [b"a", b"e"]
    assert (writer.written, len(writer)) == (2, 0)


def test_a_reader_that_ends_in_the_middle_of_a_line() -> None:
    """The rest of the line is lost with the queued lines, and each is counted once."""
    writer = LineWriter()
    writer.max_block = 0.0
    with pipe_as_standard_output() as reading:
        writer.write(b"a" * 100_000 + b"\n")
        writer.write(b"b\n")
        assert (len(writer), writer.dropped) == (2, 0)
        os.close(reading)
        assert writer.flush(0.0)
    assert (writer.written, writer.dropped, len(writer)) == (0, 2, 0)


def test_a_standard_output_without_room_completes_its_line_later(tmp_path: Path) -> None:
    """A full disk loses lines, but the rest of a line that was started is written when there is room."""
    writer = LineWriter()
    writer.max_block = 0.0
    with file_as_standard_output(tmp_path / "out"):
        with limited(resource.RLIMIT_FSIZE, 3):
            writer.write(b"abcdef\n")
            writer.write(b"lost\n")
            assert (writer.written, writer.dropped, len(writer)) == (0, 1, 1)
        writer.write(b"next\n")
    assert (tmp_path / "out").read_bytes() == b"abcdef\nnext\n"
    assert (writer.written, writer.dropped, len(writer)) == (2, 1, 0)


def test_a_partial_write_is_counted_by_line(tmp_path: Path) -> None:
    """Whole lines are counted, the rest of the interrupted one is kept, the others are offered again."""
    output = StandardOutput()
    with file_as_standard_output(tmp_path / "out"):
        with limited(resource.RLIMIT_FSIZE, 5):
            assert (output.offer([b"ab\n", b"cdef\n", b"g\n"]), output.partial_line) == (2, b"ef\n")
            with pytest.raises(OSError, match="File too large"):
                output.offer([b"g\n"])
            assert output.partial_line == b"ef\n"
        assert (output.offer([b"g\n"]), output.partial_line) == (1, b"")
    assert ((tmp_path / "out").read_bytes(), output.lines_written) == (b"ab\ncdef\ng\n", 3)


@pytest.mark.parametrize("kind", ["pipe that cannot be opened", "socket", "terminal"])
def test_other_kinds_of_standard_output(kind: str) -> None:
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
    no_files = limited(resource.RLIMIT_NOFILE, 3)  # as a pipe of another user's
    with own_standard_output(writing), no_files if kind.startswith("pipe") else nullcontext():
        for line in lines:
            writer.write(line)
        assert len(writer) > 10
        got = b""
        while got.count(b"\n") < 300:
            writer.flush(0.0)
            got += os.read(reading, 65536)
        writer.flush(0.0)
    os.close(reading)
    assert got == b"".join(lines)
    assert (writer.written, writer.dropped, len(writer)) == (300, 0, 0)


def test_a_line_that_cannot_be_encoded_is_counted(tmp_path: Path) -> None:
    """For standard output and for its file; other lines are written."""
    file = LogFile(str(tmp_path / "app.log"), None, None, compress=False, on_internal_error=print)
    writer = LineWriter()
    writer.open()
    with stuck_writer(writer) as stream:
        writer.enqueue(1, str.encode, file)
        writer.enqueue(1, str.encode)
        writer.enqueue("x", str.encode, file)
    writer.close()
    assert stream.text() == "first\nx"
    assert writer.counts() == Counts(4, 2, {"queue_full": 0, "stdout_write": 0, "internal_error": 2}, 0)
    assert writer.file_counts(file) == Counts(2, 1, {"queue_full": 0, "file_write": 0, "internal_error": 1}, 0)


def test_errors_have_room_of_their_own(tmp_path: Path) -> None:
    """A full queue takes some more errors; refused lines are counted for the file as well."""
    file = LogFile(str(tmp_path / "app.log"), None, None, compress=False, on_internal_error=print)
    writer = LineWriter(limit=10)
    writer.open()
    with stuck_writer(writer):
        for _ in range(12):
            writer.write(b"x\n", file=file, file_line=b"x\n", level=20)
        for _ in range(3):
            writer.write(b"e\n", file=file, file_line=b"e\n", level=40)
        writer.enqueue("y", str.encode, file)
        assert len(writer) == 11
        assert writer.file_counts(file) == Counts(16, 0, {"queue_full": 5, "file_write": 0, "internal_error": 0}, 11)
    writer.close()
    assert (writer.written, writer.dropped) == (12, 5)
    writer.open()
    with stuck_writer(writer):
        for _ in range(5):
            writer.write(b"x" * (3 << 20))
        assert len(writer) == 3
    writer.close()
    assert (writer.written, writer.dropped) == (16, 7)


def test_a_closed_pipe_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing reads the pipe any more, lines are dropped and counted; standard error has one message about it."""
    writer = LineWriter()
    with pipe_as_standard_output() as reading:
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
            writer.write(line, file=file, file_line=line)
        writer.flush(0.05)
        assert len(writer)
        sys.stdout.close()
        writer.write(b"later\\n", file=file, file_line=b"later\\n")
        until = time.monotonic() + 20
        while writer.counts().queued and time.monotonic() < until:  # `len` does not see what is being written
            time.sleep(0.01)
        assert writer.dropped and writer.written + writer.dropped == 2001, (writer.written, writer.dropped_by_reason)
        assert open(path, "rb").read() == line * 2000 + b"later\\n"
        assert any(thread.name == "fastapi-observe-log-writer" for thread in threading.enumerate())
        """
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_an_internal_error_ends_neither_thread_nor_caller(writer: LineWriter, during: ExitStack) -> None:
    """It is reported, and later lines are written."""
    stream = standard_output(during)
    reported: list[str] = []
    writer.on_internal_error = lambda site, _: reported.append(site)
    failing: Any = SimpleNamespace()  # a file that cannot be written to at all
    writer.write(b"x\n", file=failing)
    until(lambda: reported)
    writer.write(b"y\n", file=failing, urgent=True)
    writer.write(b"z\n", urgent=True)
    until(lambda: stream.text().endswith("z\n"))
    assert set(reported) == {"logs.writer"}
    assert threads() == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_replaced(writer: LineWriter, during: ExitStack) -> None:
    """The next line starts another."""
    stream = standard_output(during)

    def leave(_line: bytes) -> bytes:
        raise SystemExit

    writer.enqueue(b"", leave)
    until(lambda: threads() == 0)
    writer.write(b"x\n")
    until(lambda: stream.text() == "x\n")
    assert threads() == 1


def test_a_file_as_standard_output(tmp_path: Path) -> None:
    """A file is always ready."""
    with file_as_standard_output(tmp_path / "out"):
        LineWriter().write(b"x\n")
        assert (tmp_path / "out").read_bytes() == b"x\n"


def test_queued_lines_are_written_at_exit() -> None:
    """A process that ends without `close` loses no line, nor those of other exit handlers; no error is raised."""
    done = run(
        """
        import atexit
        from fastapi_observe.logs.writer import LineWriter

        class Failing(LineWriter):
            def flush(self, timeout: float) -> bool:
                raise RuntimeError

        failing = Failing()
        failing.on_internal_error = lambda site, exc: print(site, type(exc).__name__)
        failing.open()
        writer = LineWriter()
        atexit.register(lambda: writer.write(b"last\\n"))
        writer.open()
        writer.write(b"x\\n")
        """
    )
    assert sorted(done.stdout.splitlines()) == ["last", "logs.writer RuntimeError", "x"]
    assert done.stdout.index("x\n") < done.stdout.index("last\n")
    assert done.stderr == ""


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
def test_fork_inside_a_write() -> None:
    """A fork from inside a write does not hang, and later lines are written."""
    writer = LineWriter()

    class Forking(io.StringIO):
        def write(self, text: str) -> int:
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
            return super().write(text)

    with redirect_stdout(Forking()) as forking:
        writer.write(b"x\n")
        writer.write(b"y\n")
    assert forking.getvalue() == "x\ny\n"
