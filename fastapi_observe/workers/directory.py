"""Where the workers of one server meet: which process supervises them, and the directory that is named after it."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Final

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what stands in it is checked
"""Memory that processes share: values there cost no disk."""

DIRECTORY_NAME: Final = re.compile(r"(\d+)-(\d+)-(\d+)(?:-[0-9a-f]{8})?")
"""Name of a directory: namespace of process ids, supervisor, when that was started, and which app it started."""

STALE_AFTER: Final = 3600.0
"""Seconds for which a directory of another namespace, whose supervisor we cannot see, is left alone."""


class UnsafeDirectoryError(OSError):
    """A directory that others may write in, or have made."""


def supervisor_pid(installed_in: int) -> int | None:
    """Return the process whose workers we are one of; None: there are no others. `installed_in` called `install`."""
    if os.getpid() != installed_in:  # gunicorn --preload, or any fork
        return installed_in
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = multiprocessing.parent_process() if multiprocessing is not None else None
    if parent is not None:  # uvicorn, hypercorn and granian
        return int(parent.pid)
    return os.getppid() if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn") else None


def is_supported() -> bool:
    """Tell whether this system has the calls that sharing needs."""
    return fcntl is not None and hasattr(os, "posix_fallocate") and hasattr(os, "mkfifo")


def directory_name(pid: int, app: str) -> str:
    """Return the name that the workers of a supervisor find each other by; pids are used again, so it is not all.

    `app` tells apart what one launcher has started: eight hexadecimal digits.
    """
    return f"{_namespace()}-{pid}-{_started(pid)}-{app}"


def app_identity(*names: str) -> str:
    """Return what tells an app from another that the same process has started: of its names, and where it is made.

    All workers of a server run the same code, so they agree on the file that `install` is called in. Nothing that
    depends on the process belongs here (routes, variables), nor what a deployment changes (versions, lines).
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as `inspect` does
    ours = __name__.partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == ours:
        frame = frame.f_back
    where = "" if frame is None else frame.f_code.co_filename
    return f"{zlib.crc32(repr((*names, where)).encode('utf-8', 'backslashreplace')):08x}"


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return 0


def _started(pid: int) -> int:
    """Return when a process was started, in a unit of the system; 0: there is none, or it is hidden from us."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    import psutil  # noqa: PLC0415 - where there is no /proc

    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return 0


def open_root(wanted: str | None) -> Path:
    """Return our directory in the first place that can be written in.

    Raises UnsafeDirectoryError where somebody else has a hand in it, another OSError where there is no place.
    """
    places = [Path(wanted)] if wanted is not None else [SHARED_MEMORY, Path(tempfile.gettempdir())]
    for place in places[:-1]:
        try:
            return _open_root_in(place)
        except UnsafeDirectoryError:  # who made it may want us elsewhere
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
    """Raise UnsafeDirectoryError unless a directory is one, is ours, and is closed to others."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeDirectoryError(f"{directory} is no directory (a symbolic link may have been put there): remove it")
    if found.st_uid != os.geteuid():
        raise UnsafeDirectoryError(
            f"{directory} belongs to user {found.st_uid}: remove it, or set multiprocess_directory"
        )
    if found.st_mode & 0o077:
        raise UnsafeDirectoryError(
            f"{directory} is open to others (mode {found.st_mode & 0o777:o}): remove it, or chmod 700 it"
        )


def lock_file(descriptor: int) -> None:
    """Take the lock of an open file, which ends with the process. Raises OSError when another process has it."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_directory(directory: Path) -> None:
    """Make a directory of ours, and the one it stands in, unless they are there. Raises OSError as `check` does."""
    with suppress(FileExistsError):
        try:
            directory.mkdir(0o700)
        except FileNotFoundError:
            with suppress(FileExistsError):
                directory.parent.mkdir(0o700)
            check_directory(directory.parent)
            directory.mkdir(0o700)
    check_directory(directory)


def is_locked(path: Path) -> bool:
    """Tell whether another process holds the lock of a file; one of our own must not be asked about.

    Closing a file gives up every lock that the process has on it (POSIX).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared, so that two who ask do not take each other for the owner.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_stale_directories(root: Path, ours: str) -> None:
    """Remove the directories of servers that are gone."""
    for directory in _directories(root):
        if directory.name != ours:
            with suppress(OSError):
                if _is_stale(directory):
                    remove_directory(directory)


def _directories(root: Path) -> Iterator[Path]:
    for entry in os.scandir(root):
        if DIRECTORY_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield root / entry.name


def _parts(directory: Path) -> tuple[int, int, int]:
    namespace, pid, started, *_ = directory.name.split("-")
    return int(namespace), int(pid), int(started)


def is_supervisor_alive(directory: Path) -> bool:
    """Tell whether the supervisor that a directory of ours is named after still lives: more workers may come."""
    _, pid, started = _parts(directory)
    return _started(pid) == started


def _is_stale(directory: Path) -> bool:
    namespace, pid, started = _parts(directory)
    if namespace != _namespace():
        gone = time() - directory.stat().st_mtime > STALE_AFTER
    else:
        gone = _started(pid) != started or started == 0
    return gone and not any(is_locked(path) for path in directory.glob("*.lock"))


def remove_directory(directory: Path) -> None:
    """Remove a directory of ours with everything in it."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    directory.rmdir()
