"""The file by which the command `show` finds the console of a running server."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.internal.forks import register_at_exit
from fastapi_observe.workers.directory import is_process_alive, open_root, process_identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME: Final = re.compile(r"console-(\d+-\d+-\d+)-[0-9a-f]{8}\.json")
"""The identity of the server's process, and a random part: a process may have several apps."""

MAX_FILE_SIZE: Final = 16_384


class RunningServer(NamedTuple):
    """The console of a running server: its URL, with the path, and the token that it accepts.

    `directory` is the working directory of the server; empty if it is unknown.
    """

    url: str
    token: str
    service: str
    pid: int
    started: float
    directory: str


class ServerFile:
    """Publishes the console of this process for other processes of the same user, until `remove` or the end.

    The file has mode 0600, in the directory of this user that the workers of all servers use. On systems without
    numeric users nothing is published.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._pid = 0
        self._undo_exit = register_at_exit(self, ServerFile.remove)

    def publish(self, url: str, token: str, service: str) -> None:
        """Write the file, if there is none. Raises OSError if another user may write to the directory."""
        if not hasattr(os, "geteuid") or (self._path is not None and self._pid == os.getpid()):
            return
        self._pid = os.getpid()
        running_servers(self._directory)  # removes the files of ended ones
        root = open_root(self._directory)
        name = f"console-{process_identity(self._pid)}-{secrets.token_hex(4)}.json"
        server = RunningServer(url, token, service, self._pid, time(), working_directory())
        descriptor = os.open(root / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(server._asdict(), file)
        # Renamed when it is complete, so that no reader sees a part of it.
        self._path = (root / f".{name}").rename(root / name)

    def remove(self) -> None:
        """Remove the file. A forked child leaves its parent's alone."""
        if self._path is not None and self._pid == os.getpid():
            with suppress(OSError):
                self._path.unlink()
            self._path = None

    def close(self) -> None:
        """Remove the file, and do not look for it when the process ends."""
        self._undo_exit()
        self.remove()


def working_directory() -> str:
    """Return the working directory of this process; empty if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a string is stored and compared
    except OSError:
        return ""


def running_servers(directory: str | None) -> list[RunningServer]:
    """Return the servers of this user that have a console, the newest first. Files of ended ones are removed.

    Raises OSError if the directory cannot be read or another user may write to it.
    """
    if not hasattr(os, "geteuid"):
        return []
    root = open_root(directory)
    return sorted(_read_all(root), key=lambda server: -server.started)


def _read_all(root: Path) -> Iterator[RunningServer]:
    for entry in os.scandir(root):
        match = FILE_NAME.fullmatch(entry.name)
        if match is None:
            continue
        with suppress(OSError, ValueError, TypeError, KeyError):
            if is_process_alive(match[1]):
                yield _read(root / entry.name)
            else:
                (root / entry.name).unlink()


def _read(path: Path) -> RunningServer:
    """Read a file. Raises OSError or ValueError if it is another user's, a link, or not of this kind."""
    found: Any = json.loads(read_private_file(path, MAX_FILE_SIZE))
    return RunningServer(
        str(found["url"]),
        str(found["token"]),
        str(found["service"]),
        int(found["pid"]),
        float(found["started"]),
        str(found["directory"]),
    )


def read_private_file(path: Path, size: int) -> bytes:
    """Return at most `size` bytes of a file. Raises OSError if it is a link, or another user can read it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(path)
        return file.read(size)
