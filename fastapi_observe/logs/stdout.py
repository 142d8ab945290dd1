"""Standard output, written to without waiting for its reader."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIPE_CHUNK: Final = 4096
"""Bytes that a pipe takes whole or not at all (PIPE_BUF on Linux), so that lines of several workers do not mix."""

STDOUT_CHUNK_SIZE: Final = 1 << 16
"""Bytes of one write to anything else."""

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors after which the rest of a line is kept, to complete it when there is room again."""


class StandardOutput:
    """Writes lines to the current `sys.stdout`. `lines_written` counts them.

    The process's own standard output is written to by its descriptor. A pipe or a terminal is opened once more, as not
    blocking: the original is shared with other processes. A stream that the user has put there is written to as such.
    `partial_line` is the rest of a line of which a part was written.
    """

    def __init__(self) -> None:
        self.lines_written = 0
        self.partial_line = b""

    def offer(self, lines: list[bytes]) -> int:
        """Write as many of `lines` as are taken without blocking. Returns their number; raises what the stream raises.

        A line of which a part was written is included; it is counted when the rest, which goes first, is written.
        """
        stream: Any = sys.stdout
        descriptor = _own_descriptor(stream)
        if descriptor is None:
            rest, self.partial_line = self.partial_line, b""
            _write_stream(stream, [rest, *lines])
            self.lines_written += len(lines) + bool(rest)
            return len(lines)
        kind = os.fstat(descriptor).st_mode
        try:
            if stat.S_ISREG(kind):
                return self._send(lines, partial(os.write, descriptor), STDOUT_CHUNK_SIZE)
            with _sending(descriptor, kind) as send:
                return self._send(lines, send, STDOUT_CHUNK_SIZE if stat.S_ISSOCK(kind) else PIPE_CHUNK)
        except OSError as exc:
            if exc.errno not in DISK_FULL:
                self.partial_line = b""
            raise

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds` until standard output takes something. Returns whether it does."""
        descriptor = _own_descriptor(sys.stdout)
        if descriptor is None:  # another stream takes everything, or raises
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _send(self, lines: list[bytes], send: Callable[[bytes], int], chunk_size: int) -> int:
        if not self._finish(send, chunk_size):
            return 0
        at, remaining = 0, sum(map(len, lines))
        while at < len(lines):
            if remaining <= chunk_size:  # usually all lines
                until, size = len(lines), remaining
            else:
                until, size = at + 1, len(lines[at])
                while until < len(lines) and size + len(lines[until]) <= chunk_size:
                    size += len(lines[until])
                    until += 1
            remaining -= size
            chunk = lines[at] if until == at + 1 else b"".join(lines[at:until])
            if size > chunk_size:
                self.partial_line = chunk
                at = until
                if not self._finish(send, chunk_size):
                    return at
                continue
            sent = send(chunk)
            if sent < size:
                return at + self._split(lines[at:until], sent)
            self.lines_written += until - at
            at = until
        return at

    def _split(self, lines: list[bytes], sent: int) -> int:
        """Record that `sent` bytes of `lines` were written. Returns the number of lines up to the partial one."""
        number = 0
        while sent >= len(lines[number]):
            sent -= len(lines[number])
            number += 1
        self.lines_written += number
        if sent:
            self.partial_line = lines[number][sent:]
            number += 1
        return number

    def _finish(self, send: Callable[[bytes], int], chunk_size: int) -> bool:
        """Write the rest of a partial line. Returns whether nothing of it is left."""
        if not self.partial_line:
            return True
        while self.partial_line:
            sent = send(self.partial_line[:chunk_size])
            if not sent:
                return False
            self.partial_line = self.partial_line[sent:]
        self.lines_written += 1
        return True


def _own_descriptor(stream: Any) -> int | None:
    """Return the descriptor of the process's own standard output, or None if it is closed or replaced."""
    if sys.__stdout__ is None or stream is not sys.__stdout__ or not hasattr(select, "poll"):
        return None
    try:
        return sys.__stdout__.fileno()
    except (OSError, ValueError):  # closed or detached, or it never had one: writing raises
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
    """Provide a function that writes to a socket, pipe or terminal without blocking and returns the bytes taken."""
    if stat.S_ISSOCK(kind):
        end = socket.socket(fileno=descriptor)
        try:
            yield lambda data: _zero_if_blocking(lambda: end.send(data, socket.MSG_DONTWAIT))
        finally:
            end.detach()
        return
    try:
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no /proc, or the pipe is another user's: poll first, although another process may be faster then
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        yield lambda data: os.write(descriptor, data) if poll.poll(0) else 0
        return
    try:
        yield lambda data: _zero_if_blocking(lambda: os.write(again, data))
    finally:
        os.close(again)


def _zero_if_blocking(write: Callable[[], int]) -> int:
    try:
        return write()
    except BlockingIOError:
        return 0
