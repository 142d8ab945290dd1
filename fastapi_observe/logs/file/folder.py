"""Opens log files and their folders so that no other user of the machine can lead us to a file of their choice.

In a folder that everybody may write in, such as `/tmp`, a stranger can put a link, a hard link or a file of theirs
where ours is looked for. A folder that others cannot write in is believed, with the links in it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o640
FOLDER_MODE: Final = 0o750
"""Modes of what we make; a stricter umask makes them stricter."""

OPEN_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
"""No link is followed, no program that is started gets the descriptor."""

MAX_LINKS: Final = 40
"""Links on the way to one folder, as in the kernel."""

_PATH: Final = getattr(os, "O_PATH", 0)
"""Opens a folder that may only be passed through, and a link itself; only Linux has it."""


def open_file(path: Path, flags: int, *, make: bool = False) -> int:
    """Open a log file, with `make` after its missing folders were made.

    Raises `PermissionError`, which tells the reason and the next step, where a stranger may have had a hand in it;
    another `OSError` where it cannot be opened.
    """
    flags |= OPEN_FLAGS | getattr(os, "O_BINARY", 0)
    if not _PATH:  # pragma: no cover - not Linux: folders on the way are not looked at
        if make:
            _make_folders(path.parent)
        descriptor = os.open(path, flags, FILE_MODE)
        folder = None if os.name == "nt" else os.stat(path.parent)  # noqa: PTH116 - as below
    else:
        way = open_directory(path.parent, make=make)
        try:
            descriptor = os.open(path.name, flags, FILE_MODE, dir_fd=way)
            folder = os.fstat(way)
        finally:
            os.close(way)
    reason = unsafe_reason(os.fstat(descriptor), folder)
    if reason:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, reason, str(path))
    return descriptor


def unsafe_reason(file: os.stat_result, folder: os.stat_result | None) -> str:
    """Tell why a file in `folder` may be one that a stranger has chosen; empty if it is not, or on Windows.

    It is ours if it belongs to us or to root; or to the owner of the folder, unless everybody may write there.
    """
    if folder is None:  # pragma: no cover - Windows
        return ""
    if not stat.S_ISREG(file.st_mode):
        return "it is not a plain file: remove it"
    if file.st_uid not in _trusted_owners() and (file.st_uid != folder.st_uid or folder.st_mode & stat.S_IWOTH):
        return f"it belongs to user {file.st_uid}: remove it, chown it to user {os.geteuid()}, or name another folder"
    if file.st_nlink > 1:
        return "it has another name too (a hard link): remove it, or name a file in a folder of your own"
    return ""


def open_directory(folder: Path, *, make: bool = False) -> int:
    """Open a folder to find files in it, with `make` after it and those above were made where they are missing.

    Links on the way are followed where no stranger can have put them. Only on Linux.
    """
    left = _reversed_parts(folder)
    here = os.open("/", _PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    links = 0
    try:
        while left:
            name = left.pop()
            there = _open_entry(name, here, make=make)
            try:
                info = os.fstat(there)
                if stat.S_ISLNK(info.st_mode):
                    links += 1
                    _follow_or_raise(folder, name, info, os.fstat(here), links)
                    target = Path(os.readlink("", dir_fd=there))
                    left += _reversed_parts(target)
                    if not target.is_absolute():
                        continue
                    link, there = there, os.open("/", _PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    os.close(link)
                here, there = there, here
            finally:
                os.close(there)
    except BaseException:
        os.close(here)
        raise
    return here


def _reversed_parts(path: Path) -> list[str]:
    return [part for part in reversed(path.parts) if part != path.anchor]


def _open_entry(name: str, folder: int, *, make: bool) -> int:
    """Open a folder, or a link, in a folder."""
    flags = _PATH | OPEN_FLAGS
    try:
        return os.open(name, flags | os.O_DIRECTORY, dir_fd=folder)  # it has what is mounted on demand mounted
    except NotADirectoryError:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, FOLDER_MODE, dir_fd=folder)
    return os.open(name, flags, dir_fd=folder)


def _follow_or_raise(path: Path, name: str, link: os.stat_result, folder: os.stat_result, links: int) -> None:
    """Raise `OSError` where a link should not be followed: a stranger may have put it there, or it leads nowhere."""
    if links > MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if folder.st_mode & stat.S_IWOTH and not (folder.st_mode & stat.S_ISVTX and link.st_uid in _trusted_owners()):
        raise PermissionError(
            errno.EPERM,
            f"{name!r} on the way is a symbolic link in a folder that everybody may write in: "
            "name the folder it leads to, or chmod o-w the one it is in",
            str(path),
        )


def _trusted_owners() -> tuple[int, int]:
    return os.geteuid(), 0


def _make_folders(folder: Path) -> None:  # pragma: no cover - not Linux
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(FOLDER_MODE, exist_ok=True)
