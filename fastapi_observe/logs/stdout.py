"""Standard output, written to without ever waiting for its reader."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIPE_CHUNK: Final = 4096
"""Bytes that a pipe takes whole or not at all (PIPE_BUF on Linux): lines of several workers do not mix."""

STDOUT_CHUNK_SIZE: Final = 1 << 16
"""Bytes that are written at once elsewhere."""

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""After these the rest of a line is kept, so that it is whole when there is room again."""


class StandardOutput:
    """Writes lines to `sys.stdout`, as it is at that moment; `taken` counts them.

    The process's own is written to by its descriptor: a pipe or a terminal is opened once more, so as not to block,
    since what the process was given is shared with others. What the user put there is a stream like any other.
    """

    def __init__(self) -> None:
        self.lines_written = 0
        self.partial_line = b""

    def offer(self, lines: list[bytes]) -> int:
        """Write as many of `lines` as are taken at once; return their number. Raises what the stream raises.

        A line of which only a part was taken counts as taken later: what is left is in `rest` and goes first next time.
        """
        stream: Any = sys.stdout
        descriptor = _own_descriptor(stream)
        if descriptor is None:
            began, self.partial_line = self.partial_line, b""
            _write_stream(stream, [began, *lines])
            self.lines_written += len(lines) + bool(began)
            return len(lines)
        kind = os.fstat(descriptor).st_mode
        try:
            with _sending(descriptor, kind) as send:
                return self._send(
                    lines, send, STDOUT_CHUNK_SIZE if stat.S_ISREG(kind) or stat.S_ISSOCK(kind) else PIPE_CHUNK
                )
        except OSError as exc:
            if exc.errno not in FULL:
                self.partial_line = b""
            raise

    def wait(self, seconds: float) -> bool:
        """Wait until standard output takes something, or `seconds` are over; tell whether it does."""
        descriptor = _own_descriptor(sys.stdout)
        if descriptor is None:  # a stream like any other takes everything, or raises
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _send(self, lines: list[bytes], send: Callable[[bytes], int], most: int) -> int:
        if not self._finish(send, most):
            return 0
        at = 0
        while at < len(lines):
            until, size = at + 1, len(lines[at])
            while until < len(lines) and size + len(lines[until]) <= most:
                size += len(lines[until])
                until += 1
            piece = lines[at] if until == at + 1 else b"".join(lines[at:until])
            if size > most:
                self.partial_line = piece
                at = until
                if not self._finish(send, most):
                    return at
                continue
            sent = send(piece)
            if sent < size:
                return at + self._note_part(lines[at:until], sent)
            self.lines_written += until - at
            at = until
        return at

    def _note_part(self, lines: list[bytes], sent: int) -> int:
        """Take down what was sent of `lines`; return how many of them are no longer to be sent."""
        number = 0
        while sent >= len(lines[number]):
            sent -= len(lines[number])
            number += 1
        self.lines_written += number
        if sent:
            self.partial_line = lines[number][sent:]
            number += 1
        return number

    def _finish(self, send: Callable[[bytes], int], most: int) -> bool:
        """Send what is left of a line; tell whether all of it went."""
        if not self.partial_line:
            return True
        while self.partial_line:
            sent = send(self.partial_line[:most])
            if not sent:
                return False
            self.partial_line = self.partial_line[sent:]
        self.lines_written += 1
        return True


def _own_descriptor(stream: Any) -> int | None:
    """Return the descriptor of the process's own standard output; None if it is closed, or the user's instead of it."""
    if sys.__stdout__ is None or stream is not sys.__stdout__ or not hasattr(select, "poll"):
        return None
    try:
        return sys.__stdout__.fileno()
    except (OSError, ValueError):  # closed, detached, or nothing that has one: writing to it tells
        return None


def _write_stream(stream: Any, lines: list[bytes]) -> None:
    data = b"".join(lines)
    binary = getattr(stream, "buffer", None)
    if binary is None:
        stream.write(data.decode("utf-8", "replace"))
        stream.flush()
    else:
        binary.write(data)
        binary.flush()


@contextmanager
def _sending(descriptor: int, kind: int) -> Iterator[Callable[[bytes], int]]:
    """Give a call that writes to `descriptor` what it takes without waiting, and returns how much that was."""
    if stat.S_ISSOCK(kind):
        end = socket.socket(fileno=descriptor)
        try:
            yield lambda data: _unless_it_blocks(lambda: end.send(data, socket.MSG_DONTWAIT))
        finally:
            end.detach()
        return
    if stat.S_ISREG(kind):
        yield lambda data: os.write(descriptor, data)
        return
    try:
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (
        OSError
    ):  # no /proc, or the pipe is another user's: it is asked before, in which other processes may be quicker
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        yield lambda data: os.write(descriptor, data) if poll.poll(0) else 0
        return
    try:
        yield lambda data: _unless_it_blocks(lambda: os.write(again, data))
    finally:
        os.close(again)


def _unless_it_blocks(write: Callable[[], int]) -> int:
    try:
        return write()
    except BlockingIOError:
        return 0
