"""The rotating log file: one for each process, compressed and cleaned up piece by piece in the writer's thread."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: files of dead processes are left as they are
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODE: Final = 0o640
RETRY_AFTER: Final = 1.0
"""Seconds until a file that could not be written is tried again, and between looks whether it was moved away."""

PIECE: Final = 1 << 18
"""Bytes that are compressed between two batches of lines."""

MOST_NAMES: Final = 100
"""Most files of processes with the same id (several containers, one volume)."""

SIZES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
AGES: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
AMOUNT: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([a-zA-Z]{1,7})\s*", re.ASCII)


class Rotation(NamedTuple):
    """When a new file begins: at `size` bytes or after `age` seconds, whichever is set."""

    size: int | None
    age: float | None


class Retention(NamedTuple):
    """What is kept of rotated files: the newest `files`, or those younger than `age` seconds."""

    files: int | None
    age: float | None


def parse_rotation(text: str | None) -> Rotation | None:
    """Read `100 MB`, `1 GB`, `500 KB`, `1 day`, `12 hours`; None: never. Raises `ValueError` for anything else."""
    if text is None:
        return None
    number, unit = _amount(text)
    if number > 0 and unit.upper() in SIZES:
        return Rotation(max(1, int(number * SIZES[unit.upper()])), None)
    if number > 0 and _age_unit(unit) in AGES:
        return Rotation(None, number * AGES[_age_unit(unit)])
    raise ValueError(
        f"log_rotation: got {text!r}, accepts a size such as '500 KB', '100 MB' or '1 GB', "
        "or an age such as '12 hours' or '1 day'"
    )


def parse_retention(text: str | None) -> Retention | None:
    """Read `10 files`, `7 days`, `12 hours`; None: keep all. Raises `ValueError` for anything else."""
    if text is None:
        return None
    number, unit = _amount(text)
    if number == int(number) and unit.lower() in {"file", "files"}:
        return Retention(int(number), None)
    if number > 0 and _age_unit(unit) in AGES:
        return Retention(None, number * AGES[_age_unit(unit)])
    raise ValueError(f"log_retention: got {text!r}, accepts a number such as '10 files' or an age such as '7 days'")


def _amount(text: str) -> tuple[float, str]:
    match = AMOUNT.fullmatch(text)
    return (float(match[1]), match[2]) if match else (0.5, "")


def _age_unit(unit: str) -> str:
    return unit.lower().removesuffix("s")


class LogFile:
    """Appends lines to `path` (its `{pid}` filled in), rotates it, compresses and removes what was rotated.

    Only files of exactly the names that it gives itself are touched. A file whose process is dead counts as rotated:
    the living hold a lock on theirs. Raises `ValueError` for a path that cannot be written; later nothing raises:
    `dropped` counts the lines that the disk did not take, and `on_fault` is told why.
    """

    def __init__(
        self,
        path: str,
        rotation: Rotation | None,
        retention: Retention | None,
        compress: bool,  # noqa: FBT001 - named at its one call
        on_fault: Callable[[str, BaseException], None],
    ) -> None:
        template = Path(path)
        name = template.name if "{pid}" in template.name else f"{template.stem}.{{pid}}{template.suffix}"
        self._template = str(template.with_name(name))
        self._suffix = Path(name).suffix
        process = r"\d+(?:_\d+)?"
        stem = process.join(re.escape(part) for part in name.removesuffix(self._suffix).split("{pid}"))
        suffix = re.escape(self._suffix)
        self._active_name = re.compile(stem + suffix)
        self._rotated_name = re.compile(rf"{stem}\.\d{{8}}T\d{{6}}\.\d{{6}}{suffix}(\.gz)?")
        self._rotation = rotation
        self._retention = retention
        self._compress = compress
        self._on_fault = on_fault
        self.dropped = 0
        self.path: Path | None = None
        self._descriptor = -1
        self._pid = 0
        self._size = 0
        self._since = 0.0
        self._look_again = 0.0
        self._work: Iterator[None] | None = None
        self._more_work = False
        reason = _why_not(template, Path(self._fill(os.getpid())))
        if reason:
            raise ValueError(
                f"log_file: {path!r} cannot be written: {reason}; "
                "name a file in a folder that exists and that this process may write to"
            )

    def write(self, lines: list[bytes]) -> bool:
        """Append `lines`; tell whether there is work for `tend`."""
        try:
            self._prepare()
        except OSError as exc:
            self._fail(exc)
        batch = b"".join(lines)
        for piece in lines if self._is_too_big(len(batch)) else [batch]:
            count = 1 if piece is not batch else len(lines)
            if self._descriptor < 0:
                self.dropped += count
                continue
            try:
                self._append(piece)
            except OSError as exc:
                self.dropped += count
                self._fail(exc)
        return self._work is not None

    def tend(self) -> bool:
        """Do one piece of the work on rotated files; tell whether there is more."""
        work = self._work
        if work is None:
            return False
        try:
            next(work)
        except StopIteration:
            self._work = self._housekeeping() if self._more_work else None
            self._more_work = False
            return self._work is not None
        except OSError as exc:
            self._work = None
            self._on_fault("logs.file", exc)
            return False
        return True

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._look_again = 0.0
            os.close(descriptor)

    def _prepare(self) -> None:
        """Have the file of this process open, unless it failed a moment ago."""
        now = monotonic()
        if self._pid != os.getpid():
            self.close()
        if now < self._look_again:
            return
        self._look_again = now + RETRY_AFTER
        if self._descriptor >= 0 and not self._is_there():
            self.close()
        if self._descriptor < 0:
            self._open()

    def _is_there(self) -> bool:
        """Tell whether the open file still has its name: another program may have moved it away."""
        return self.path is not None and _stands_at(self._descriptor, self.path)

    def _open(self) -> None:
        pid = os.getpid()
        if self.path is None or self._pid != pid:
            Path(self._fill(pid)).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        for again in range(MOST_NAMES):
            path = Path(self._fill(f"{pid}_{again}" if again else pid))
            descriptor = _open_append(path)
            if _locked(descriptor) and _stands_at(descriptor, path):
                break
            os.close(descriptor)
        else:
            raise FileExistsError(f"{MOST_NAMES} processes hold files named like {self._fill(pid)}")
        self.path = path
        self._pid = pid
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._since = monotonic()
        if self._work is None:
            self._work = self._housekeeping()
        else:
            self._more_work = True

    def _fill(self, pid: int | str) -> str:
        return self._template.replace("{pid}", str(pid))

    def _append(self, line: bytes) -> None:
        rotation = self._rotation
        if rotation is not None and self._size:
            too_old = rotation.age is not None and monotonic() - self._since >= rotation.age
            if too_old or self._is_too_big(len(line)):
                self._rotate()
        written = os.write(self._descriptor, line)
        if written < len(line):  # the disk is full: take back the torn line
            os.ftruncate(self._descriptor, self._size)
            raise OSError("the disk took only part of a line")
        self._size += written

    def _is_too_big(self, more: int) -> bool:
        size = None if self._rotation is None else self._rotation.size
        return size is not None and self._size + more > size

    def _rotate(self) -> None:
        path = self.path
        if path is not None and self._is_there():
            path.rename(self._rotated(path, time()))
        self.close()
        self._open()

    def _rotated(self, path: Path, moment: float) -> Path:
        stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%S.%f")
        return path.with_name(f"{path.name.removesuffix(self._suffix)}.{stamp}{self._suffix}")

    def _fail(self, exc: OSError) -> None:
        with suppress(OSError):
            self.close()
        self._look_again = monotonic() + RETRY_AFTER
        self._on_fault("logs.file", exc)

    def _housekeeping(self) -> Iterator[None]:
        """Adopt the files of the dead, compress, remove what is too old or too many; piece by piece."""
        path = self.path
        if path is None:  # pragma: no cover - only an open file is tended
            return
        folder = path.parent
        for each in sorted(folder.iterdir()):
            if each != path and self._active_name.fullmatch(each.name):
                self._adopt(each)
                yield
        if self._compress:
            for each in sorted(folder.iterdir()):
                match = self._rotated_name.fullmatch(each.name)
                if match and not match[1]:
                    yield from _compress(each)
        yield
        self._remove_old(folder)

    def _adopt(self, path: Path) -> None:
        """Rename a file that no living process holds, so that it is kept and removed like any rotated one."""
        descriptor = -1
        try:
            descriptor = _open_append(path, create=False)
            if fcntl is not None and _locked(descriptor) and _stands_at(descriptor, path):
                path.rename(self._rotated(path, os.fstat(descriptor).st_mtime))
        except FileNotFoundError:  # another process was quicker
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _remove_old(self, folder: Path) -> None:
        retention = self._retention
        if retention is None:
            return
        found: list[tuple[float, Path]] = []
        for each in folder.iterdir():
            if self._rotated_name.fullmatch(each.name):
                with suppress(FileNotFoundError):
                    found.append((each.stat().st_mtime, each))
        found.sort(reverse=True)
        for rank, (changed, each) in enumerate(found):
            too_many = retention.files is not None and rank >= retention.files
            too_old = retention.age is not None and time() - changed > retention.age
            if too_many or too_old:
                each.unlink(missing_ok=True)


def _why_not(template: Path, path: Path) -> str:
    """Tell why the file `path` cannot be written, leaving no trace; empty if it can. Missing folders will be made."""
    try:
        for each in (template, path):
            if each.is_dir():
                return f"{each} is a folder"
        if path.exists():
            return "" if os.access(path, os.W_OK) else f"no permission to write {path}"
        folder = next(each for each in path.absolute().parents if each.exists())
    except OSError as exc:
        return str(exc)
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write in {folder}"


def _open_append(path: Path, *, create: bool = True) -> int:
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags | (os.O_CREAT if create else 0), MODE)


def _locked(descriptor: int) -> bool:
    """Take the lock that says: this file is in use. It goes with the process."""
    try:
        if fcntl is not None:  # pragma: no branch - Windows
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _stands_at(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is still the one at `path`: another process may have renamed it before the lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _compress(path: Path) -> Iterator[None]:
    """Replace `path` by `path`.gz, keeping its time; another process may be at it already."""
    import gzip  # noqa: PLC0415 - only where files are rotated

    part = path.with_name(f"{path.name}.gz.part")
    try:
        with path.open("rb") as plain:
            if not _locked(plain.fileno()):
                return
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), MODE)
            with os.fdopen(descriptor, "wb") as raw, gzip.GzipFile("", "wb", 1, raw) as packed:
                while piece := plain.read(PIECE):
                    packed.write(piece)
                    yield
            info = os.fstat(plain.fileno())
            os.utime(part, ns=(info.st_atime_ns, info.st_mtime_ns))
            part.rename(path.with_name(f"{path.name}.gz"))
            path.unlink()
    except FileNotFoundError:  # another process was quicker
        return
