"""Compresses a rotated log file piece by piece, one file and one process at a time."""

from __future__ import annotations

import os
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from fastapi_observe.logs.file.folder import open_file
from fastapi_observe.logs.file.lock import is_same_file, truncate_torn_line, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPRESS_CHUNK_SIZE: Final = 1 << 17
"""Bytes that are compressed at once, a millisecond or two."""

GZIP: Final = 31
"""zlib's number for a header and a checksum as those of gzip."""


def compress(path: Path, part: Path) -> Iterator[None]:
    """Replace `path` by `path`.gz by way of `part`, keeping its time, unless another process is at one of them.

    The lines are in one of the two files at every moment. A process that was killed in between leaves both, or `part`:
    who comes next removes the one and takes over the other.
    """
    packed = path.with_name(f"{path.name}.gz")
    with suppress(FileNotFoundError), _locked(path, os.O_RDWR | os.O_APPEND) as plain:
        if plain < 0:
            return
        if os.path.lexists(packed):
            path.unlink()
            return
        with _locked(part, os.O_WRONLY | os.O_CREAT) as raw:
            if raw < 0:
                return
            try:
                truncate_torn_line(plain, os.fstat(plain).st_size)
                os.lseek(plain, 0, os.SEEK_SET)
                yield from _pack(plain, raw)
                info = os.fstat(plain)
                os.utime(part, ns=(info.st_atime_ns, info.st_mtime_ns))
                # Renamed while both are locked, so that nobody else begins with either of them.
                if is_same_file(plain, path):
                    part.rename(packed)
                else:  # removed meanwhile, to make room
                    part.unlink()
            except OSError:
                with suppress(OSError):
                    part.unlink()
                raise
        if os.path.lexists(packed):
            path.unlink()


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """Open a file and lock it; give -1 where another process has the lock, or the file.

    There is no buffer that a forked child, which has the descriptor too, could write once more.
    """
    descriptor = open_file(path, flags)
    try:
        yield descriptor if try_lock(descriptor) is not False and is_same_file(descriptor, path) else -1
    finally:
        os.close(descriptor)


def _pack(plain: int, raw: int) -> Iterator[None]:
    os.ftruncate(raw, 0)
    packer = zlib.compressobj(1, wbits=GZIP)
    while piece := os.read(plain, COMPRESS_CHUNK_SIZE):
        _write(raw, packer.compress(piece))
        yield
    _write(raw, packer.flush())


def _write(raw: int, data: bytes) -> None:
    while data:
        data = data[os.write(raw, data) :]
