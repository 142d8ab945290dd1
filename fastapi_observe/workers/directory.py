"""Directory that the worker processes of one server share: their supervisor, its name, and whether it is safe.

Its path is `PLACE/fastapi-observe-UID/NAMESPACE-PID-START-CHECKSUM`:

- PLACE is `multiprocess_directory`, else `/dev/shm`, else the directory for temporary files.
- `fastapi-observe-UID` is the root, with the directories of all servers of this user.
- The last part has the PID namespace, pid and start time of the supervisor, and a checksum of the app and its
  addresses. It contains `lock`, `archive` (`archive.py`), and the files of each worker (`files.py`).
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.workers.locks import is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what is in it is checked
"""A file system in memory: values there are never written to a disk."""

DIRECTORY_NAME: Final = re.compile(r"(\d+)-(\d+)-(\d+)(?:-[0-9a-f]{8})?")
"""PID namespace, pid and start time of the supervisor, and a checksum of the app and its addresses."""

GRANIAN_WORKER: Final = "granian-worker"
"""The name that granian gives its worker processes."""

STALE_AFTER: Final = 3600.0
"""Seconds after which a directory of another PID namespace, whose supervisor cannot be seen, is removed."""


class UnsafeDirectoryError(OSError):
    """Another user owns the directory, or may write to it."""


class Supervisor(NamedTuple):
    """The process that supervises this worker, and the addresses of this worker's listening sockets, if known."""

    pid: int
    sockets: tuple[str, ...] | None


def find_supervisor(installed_in: int) -> Supervisor | None:
    """Return the process that supervises this worker; None if this is a single process.

    `installed_in` is the pid of the process that called `install`. A child without a listening socket is a single
    process too: the parent is then a launcher, and the child will open its own port.
    """
    in_gunicorn = os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn")
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent, in_granian = None, False
    if multiprocessing is not None:
        parent = multiprocessing.parent_process()
        in_granian = multiprocessing.current_process().name == GRANIAN_WORKER
    if os.getpid() != installed_in:  # gunicorn --preload, or any fork
        pid = installed_in
    elif parent is not None:  # uvicorn, hypercorn and granian
        pid = int(parent.pid)
    elif in_gunicorn:
        pid = os.getppid()
    else:
        return None
    # These have one server only. Descriptors of gunicorn's master cannot be seen if the workers run as another user;
    # a worker of granian that is spawned, not forked (the default on Python 3.14), has its socket later than this.
    sockets = None if in_gunicorn or in_granian else _listening_addresses(pid)
    return None if sockets == () else Supervisor(pid, sockets)


def _listening_addresses(supervisor: int) -> tuple[str, ...] | None:
    """Return the addresses of the listening sockets that this process has from its supervisor; None without /proc.

    If there are none, return those that it has bound itself: workers may share an address by SO_REUSEPORT.
    """
    try:
        own = _open_sockets("self")
    except OSError:
        return None
    inherited: set[str] = set()
    with suppress(OSError):  # the supervisor has ended, or belongs to another user
        inherited = set(_open_sockets(str(supervisor)).values())
    addresses = {descriptor: _listening_address(descriptor) for descriptor in own}
    of_supervisor = {address for descriptor, address in addresses.items() if own[descriptor] in inherited}
    return tuple(sorted(filter(None, of_supervisor))) or tuple(sorted(filter(None, addresses.values())))


def _open_sockets(pid: str) -> dict[int, str]:
    """Return the sockets of a process: descriptor, and a name with the inode, which is the same in all processes."""
    sockets: dict[int, str] = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(entry.path)  # noqa: PTH115 - it is not a path
            if target.startswith("socket:"):
                sockets[int(entry.name)] = target
    return sockets


def _listening_address(descriptor: int) -> str:
    """Return the address of a stream socket that is bound and not connected; empty for any other.

    Whether it listens does not matter: servers call `listen` in the worker, later than this.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            address = copy.getsockname()
            if copy.type != socket.SOCK_STREAM or not address or (isinstance(address, tuple) and not address[1]):
                return ""
            try:
                copy.getpeername()
            except OSError:
                return repr(address)
    except OSError:  # closed meanwhile
        pass
    return ""


def is_supported() -> bool:
    """Return whether this system has the calls that sharing needs. Windows and macOS do not."""
    return hasattr(os, "posix_fallocate") and hasattr(os, "mkfifo")


def directory_name(supervisor: Supervisor, app: str) -> str:
    """Return the name of the directory for the workers of a supervisor that run this app on the same addresses.

    Pids are used again, so the name contains the start time too.
    """
    pid, sockets = supervisor
    return f"{process_identity(pid)}-{zlib.crc32(repr((app, sockets)).encode()):08x}"


def process_identity(pid: int) -> str:
    """Return a name of a process that no later process has: its PID namespace, pid and start time."""
    return f"{_pid_namespace()}-{pid}-{_start_time(pid)}"


def is_process_alive(identity: str) -> bool:
    """Return whether the process with an identity still runs; true for another PID namespace, which cannot be seen."""
    namespace, pid, start_time = map(int, identity.split("-"))
    return namespace != _pid_namespace() or (start_time != 0 and _start_time(pid) == start_time)


def app_identity(*names: str) -> str:
    """Return eight hexadecimal digits that identify an app by its names and the file that calls `install`.

    All workers of a server must agree on it, so nothing is used that depends on the process (routes, variables) or
    that a deployment changes (versions, line numbers).
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as `inspect` does
    package = __name__.partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame = frame.f_back
    file = "" if frame is None else frame.f_code.co_filename
    return f"{zlib.crc32(repr((*names, file)).encode('utf-8', 'backslashreplace')):08x}"


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return 0


def _start_time(pid: int) -> int:
    """Return the start time of a process in a unit of the system; 0 if there is no such process or it is hidden."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    import psutil  # noqa: PLC0415 - only needed without /proc

    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return 0


def open_root(configured: str | None) -> Path:
    """Return the directory for all servers of this user, in `configured` or else in shared or temporary storage.

    Raises UnsafeDirectoryError if another user owns it or may write to it, and OSError if it cannot be made.
    """
    if configured is not None and not Path(configured).exists():
        raise FileNotFoundError(f"the directory {Path(configured).absolute()} of multiprocess_directory does not exist")
    places = [Path(configured)] if configured is not None else [SHARED_MEMORY, Path(tempfile.gettempdir())]
    for place in places[:-1]:
        try:
            return _open_root_in(place)
        except UnsafeDirectoryError:  # its owner may try to have another directory of theirs used instead
            raise
        except OSError:
            continue
    return _open_root_in(places[-1])


def _open_root_in(place: Path) -> Path:
    root = place / f"fastapi-observe-{os.geteuid()}"
    with suppress(FileExistsError):
        root.mkdir(0o700)
    check_directory(root)
    return root


def check_directory(directory: Path) -> None:
    """Raise UnsafeDirectoryError unless this user owns the directory and no other user may enter it."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectoryError(f"{directory} is not a directory; a symbolic link is not accepted. Remove it")
    if status.st_uid != os.geteuid():
        raise UnsafeDirectoryError(
            f"{directory} belongs to user {status.st_uid}. Remove it, or set multiprocess_directory"
        )
    if status.st_mode & 0o077:
        raise UnsafeDirectoryError(
            f"{directory} is open to other users (mode {status.st_mode & 0o777:o}). Remove it, or chmod 700 it"
        )


def make_directory(directory: Path) -> None:
    """Make the directory of a server, and the one above it, unless they exist. Raises OSError as `check_directory`.

    The one above is checked each time: after a cleaner has removed it, another user may have made it again.
    """
    for path in (directory.parent, directory):
        with suppress(FileExistsError):
            path.mkdir(0o700)
        check_directory(path)


def remove_stale_directories(root: Path, own_name: str) -> None:
    """Remove the directories of servers that have ended."""
    for directory in _directories(root):
        if directory.name != own_name:
            with suppress(OSError):
                if _is_stale(directory):
                    remove_directory(directory)


def _directories(root: Path) -> Iterator[Path]:
    for entry in os.scandir(root):
        if DIRECTORY_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield root / entry.name


def _parse_name(directory: Path) -> tuple[int, int, int]:
    namespace, pid, start_time, *_ = directory.name.split("-")
    return int(namespace), int(pid), int(start_time)


def is_supervisor_alive(directory: Path) -> bool:
    """Return whether the supervisor in the name of a directory still runs, so that more workers may start."""
    _, pid, start_time = _parse_name(directory)
    return _start_time(pid) == start_time


def _is_stale(directory: Path) -> bool:
    namespace, pid, start_time = _parse_name(directory)
    if namespace != _pid_namespace():
        ended = time() - directory.stat().st_mtime > STALE_AFTER
    else:
        ended = _start_time(pid) != start_time or start_time == 0
    return ended and not any(is_locked(path) for path in directory.glob("*.lock"))


def remove_directory(directory: Path) -> None:
    """Remove the directory of a server with all files in it."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    directory.rmdir()
