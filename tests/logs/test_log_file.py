"""The log file: rotation, retention and compression lose no line and touch no other file."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import re
import resource
import shutil
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
from injection import replacing
from tools import limited, until, volume

from fastapi_observe.logs.file import retention as log_retention
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.file.rotation import Limits, LogFileNames, parse_limits
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.workers.locks import is_same_file

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER_USER = 54321


class Errors:
    """Collects internal errors."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, str]] = []

    def __call__(self, site: str, exc: BaseException) -> None:
        """Collect one."""
        self.reported.append((site, str(exc)))


def log_at(
    path: Path, rotation: str | None = None, retention: str | None = None, *, compress: bool = False
) -> tuple[LogFile, Errors]:
    """Build a log file and the list of its internal errors."""
    errors = Errors()
    file = LogFile(str(path), rotation, retention, compress=compress, on_internal_error=errors)
    return file, errors


@pytest.fixture
def cleanup_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean up in the thread, soon."""
    monkeypatch.setattr(log_retention, "GRACE_PERIOD", 0.01)


@pytest.fixture(autouse=True)
def no_cleanup_thread(request: pytest.FixtureRequest) -> None:
    """Clean up when a test says so: without threads, each rotation would try to."""
    if "cleanup_thread" not in request.fixturenames:
        request.getfixturevalue("no_threads")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system have no locks."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


def names(directory: Path) -> list[str]:
    """List a directory."""
    return sorted(each.name for each in directory.iterdir())


def contents(directory: Path) -> bytes:
    """Join everything that was logged, oldest first."""
    files = sorted(directory.iterdir(), key=lambda each: (each.stat().st_mtime_ns, each.name))
    return b"".join(gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes() for each in files)


def rotated(directory: Path, day: int, text: bytes = b"old\n", name: str = "app") -> Path:
    """Make a rotated file."""
    path = directory / f"{name}.202501{day:02d}T000000.000000.log"
    path.write_bytes(text)
    return path


def test_rotation_and_retention_are_parsed() -> None:
    """Sizes, ages and numbers of files are understood, with and without a space; of one kind, the smallest applies."""
    limits: dict[str | None, Limits] = {
        None: Limits(),
        "100 MB": Limits(100_000_000),
        "1GB": Limits(10**9),
        "500 kb": Limits(500_000),
        "7 B": Limits(7),
        "1 day": Limits(age=86_400),
        "12 Hours": Limits(age=43_200),
        "2 weeks": Limits(age=1_209_600),
        "90 minutes": Limits(age=5400),
        "1 file": Limits(files=1),
        "10 files, 7 days, 1 GB": Limits(10**9, 604_800, 10),
        "2 KB,1 day": Limits(2000, 86_400),
        "2 days, 5 files, 1 day": Limits(age=86_400, files=5),
    }
    for text, parsed in limits.items():
        assert parse_limits(text) == parsed
        assert ObserveSettings(log_retention=text).log_retention == text


def test_the_file_has_exactly_the_name_that_was_given(tmp_path: Path) -> None:
    """`{pid}` is the process id; directories are made; others can read neither; a rotated file adds the time."""
    before = os.umask(0)
    try:
        for number, (name, pattern) in enumerate(
            {
                "app.log": r"app\.TIME\.log",
                "app-{pid}.log": r"app-PID\.TIME\.log",
                "app": r"app\.TIME",
                "app.{pid}": r"app\.PID\.TIME",
                "app.2024.log": r"app\.2024\.TIME\.log",
            }.items()
        ):
            directory = tmp_path / str(number) / "logs"
            file, errors = log_at(directory / name, "10 B", "9 files")
            file.write([b"a\n", b"b\n"])
            file.write([b"a longer one\n"])
            file.close()
            path = directory / name.replace("{pid}", str(os.getpid()))
            assert (path, path.read_bytes()) == (file.path, b"a longer one\n")
            (other,) = set(names(directory)) - {path.name}
            expected = pattern.replace("PID", str(os.getpid())).replace("TIME", r"\d{8}T\d{6}\.\d{6}")
            assert re.fullmatch(expected, other)
            assert (directory / other).read_bytes() == b"a\nb\n"
            assert (file.written, sum(file.dropped.values()), errors.reported) == (3, 0, [])
            modes = [stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / str(number), directory, path)]
            assert modes == [0o750, 0o750, 0o640]
    finally:
        os.umask(before)


def test_a_closed_file_is_opened_again(tmp_path: Path) -> None:
    """The next line after `close` is appended."""
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    file.close()
    file.close()
    file.write([b"b\n"])
    assert (contents(tmp_path), names(tmp_path)) == (b"a\nb\n", ["app.log"])


def test_rotation_by_size(tmp_path: Path) -> None:
    """No file grows over the size, no line is lost, torn or out of order; a longer batch has a file of its own."""
    file, errors = log_at(tmp_path / "app.log", "100 B")
    lines = [b"line %02d\n" % number for number in range(50)]
    for at in range(0, 50, 5):
        file.write(lines[at : at + 5])
    assert contents(tmp_path) == b"".join(lines)
    assert all(each.stat().st_size <= 100 for each in tmp_path.iterdir())
    assert len(names(tmp_path)) == 5
    file.write([b"x" * 500 + b"\n"])
    assert (tmp_path / "app.log").stat().st_size == 501
    assert not errors.reported


def test_rotation_by_age(tmp_path: Path) -> None:
    """A file is as old as its first line, in whichever process it was written; without a time it starts when opened."""
    old, young, wrong = "2025-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", "2025-13-01T00:00:00.000000Z"
    for name, first in (("old", old), ("young", young), ("wrong", wrong)):
        (tmp_path / name).write_bytes(b'{"timestamp":"%s","level":"info"}\n' % first.encode())
        log_at(tmp_path / name, "1 day")[0].write([b"a\n"])
    assert [each.split(".")[0] for each in names(tmp_path)] == ["old", "old", "wrong", "young"]


def test_two_rotations_at_one_time_have_two_names(tmp_path: Path) -> None:
    """If the clock stands still, no rotated file replaces another, compressed or not."""
    path = tmp_path / "app.log"
    for number in range(6):
        target = LogFileNames(str(path)).next_rotated(path, 1_750_000_000.0)
        target.with_name(target.name + ".gz" * (number % 2)).touch(exist_ok=False)
    assert len({name.removesuffix(".gz") for name in names(tmp_path)}) == 6


def test_compression(tmp_path: Path) -> None:
    """Rotated files are compressed whole, keep their modification time and mode, and lose a torn line at their end."""
    many = b"".join(b'{"a": %d}\n' % number for number in range(30_000))  # several chunks
    torn = rotated(tmp_path, 1, many + b'{"torn')
    foreign = rotated(tmp_path, 2, b"first\nsecond")
    for at, path in enumerate((torn, foreign)):
        os.utime(path, (at + 1, at + 1))
    file, errors = log_at(tmp_path / "app.log", "100 B", compress=True)
    for number in range(30):
        file.write([b"line %02d\n" % number])
    file.rotated_files.clean_up(tmp_path)
    packed = [each for each in tmp_path.iterdir() if each.suffix == ".gz"]
    assert len(packed) == len(names(tmp_path)) - 1
    assert all(stat.S_IMODE(each.stat().st_mode) & 0o137 == 0 for each in packed)
    lines = b"".join(b"line %02d\n" % number for number in range(30))
    assert contents(tmp_path) == many + b"first\nsecond\n" + lines
    assert not errors.reported


def test_what_a_killed_process_left_half_compressed_is_finished(tmp_path: Path) -> None:
    """A compressed file next to its original is complete: the original goes. A `.part` file is written again."""
    done, half = rotated(tmp_path, 1, b"first\n"), rotated(tmp_path, 2, b"second\n")
    Path(f"{done}.gz").write_bytes(gzip.compress(b"first\n"))
    Path(f"{half}.gz.part").write_bytes(b"half" * 100)
    file, _ = log_at(tmp_path / "app.log", compress=True)
    file.write([b"third\n"])
    file.rotated_files.clean_up(tmp_path)
    assert names(tmp_path) == [f"{done.name}.gz", f"{half.name}.gz", "app.log"]
    assert sorted(contents(tmp_path).splitlines()) == [b"first", b"second", b"third"]


def test_a_file_that_another_process_uses_is_not_compressed(tmp_path: Path) -> None:
    """A late writer, or another process that compresses it, holds the lock of the file."""
    path = rotated(tmp_path, 1)
    file, _ = log_at(tmp_path / "app.log", compress=True)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        file.rotated_files.clean_up(tmp_path)
    assert names(tmp_path) == [path.name]


class StopInTheMiddle(threading.Event):
    """An event that is set when a clean-up looks for the second time, after the first file."""

    looks = 0

    def is_set(self) -> bool:
        """Return whether it is the second look."""
        self.looks += 1
        return self.looks > 1


def test_compression_that_is_stopped_or_fails_leaves_the_file(tmp_path: Path) -> None:
    """Neither a closing app nor a full disk costs a line, and no part of a file stays."""
    first, second = (rotated(tmp_path, day).name for day in (1, 2))
    files = log_at(tmp_path / "app.log", compress=True)[0].rotated_files
    with limited(resource.RLIMIT_FSIZE, 1), pytest.raises(OSError, match="File too large"):
        files.clean_up(tmp_path)
    assert names(tmp_path) == [first, second]
    files.clean_up(tmp_path, StopInTheMiddle())
    assert names(tmp_path) == [f"{first}.gz", second]


def test_retention_by_number_touches_nothing_else(tmp_path: Path) -> None:
    """The newest rotated files are kept; files of other names, links and directories stay, however similar."""
    stamp = "20250101T000000.000000"
    foreign = [
        "app.7.log",
        "app.old.log",
        f"my-app.{stamp}.log",
        f"app.{stamp}.log.bak",
        f"app.x.{stamp}.log",
        f"app.{stamp}.log.gz.old",
        f"other.{stamp}.log.gz",
        "app.20250101.log",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"foreign")
    (tmp_path / f"app.{stamp}.log").symlink_to(tmp_path / "app.old.log")
    for number in range(5):
        (tmp_path / f"app.2025020{number}T000000.000000.log.gz").write_bytes(gzip.compress(b"old"))
    (tmp_path / "app.20250200T000000.000000.log.gz.part").touch()
    file, errors = log_at(tmp_path / "app.log", "100 MB", "2 files", compress=True)
    file.write([b"a\n"])
    file.rotated_files.clean_up(tmp_path)
    kept = ["app.20250203T000000.000000.log.gz", "app.20250204T000000.000000.log.gz", "app.log", f"app.{stamp}.log"]
    assert set(names(tmp_path)) - {"app.20250200T000000.000000.log.gz.part"} == {*foreign, *kept}
    assert not errors.reported


def test_retention_by_age(tmp_path: Path) -> None:
    """Rotated files that are too old are removed, with what a killed process left of their compression."""
    for day, age in ((1, 7200), (2, 60)):
        path = rotated(tmp_path, day)
        os.utime(path, (time.time() - age,) * 2)
        Path(f"{path}.gz.part").touch()
    file, _ = log_at(tmp_path / "app.log", None, "1 hour")
    file.rotated_files.clean_up(tmp_path)
    kept = "app.20250102T000000.000000.log"
    assert names(tmp_path) == [kept, f"{kept}.gz.part"]


def test_retention_by_size(tmp_path: Path) -> None:
    """After a clean-up the files together, the current one at its largest, are within the total size."""
    for compress in (True, False):
        directory = tmp_path / str(compress)
        file, errors = log_at(directory / "app.log", None, "2 KB", compress=compress)
        for number in range(300):
            file.write([b"line %03d %s\n" % (number, os.urandom(20).hex().encode())])
            file.rotated_files.clean_up(directory)
            rest = [each.stat().st_size for each in directory.iterdir() if each != file.path]
            assert sum(rest) + 500 <= 2000
            assert file.path.stat().st_size <= 500
        assert sum(each.stat().st_size for each in directory.iterdir()) > 1000
        assert (file.written, sum(file.dropped.values()), errors.reported) == (300, 0, [])


def test_rotated_files_of_all_processes_are_kept_and_removed_together(tmp_path: Path) -> None:
    """With `{pid}` in the name, those of ended processes count; the files that other processes use stay."""
    for process in (7, 8):
        (tmp_path / f"app.{process}.log").write_bytes(b"in use\n")
        rotated(tmp_path, process, name=f"app.{process}")
    file, _ = log_at(tmp_path / "app.{pid}.log", None, "1 files")
    file.rotated_files.clean_up(tmp_path)
    assert names(tmp_path) == ["app.7.log", "app.8.20250108T000000.000000.log", "app.8.log"]


@pytest.mark.usefixtures("cleanup_thread")
def test_the_clean_up_runs_in_a_thread(tmp_path: Path) -> None:
    """It starts with the first line and after each rotation, and ends with `close`."""
    path = rotated(tmp_path, 1)
    file, _ = log_at(tmp_path / "app.log", "1 MB", "9 files", compress=True)
    file.write([b"a\n"])
    until(lambda: not path.exists())
    until(lambda: not cleanup_threads())
    file.write([b"x" * 1_000_000 + b"\n"])
    until(lambda: sum(each.suffix == ".gz" for each in tmp_path.iterdir()) == 2)
    file.close()
    assert not cleanup_threads()
    plain, _ = log_at(tmp_path / "plain.log")
    plain.write([b"a\n"])
    assert not cleanup_threads()


def cleanup_threads() -> list[threading.Thread]:
    """Return the threads that clean up."""
    return [each for each in threading.enumerate() if each.name == log_retention.RETENTION_THREAD_NAME]


@pytest.mark.usefixtures("cleanup_thread")
def test_a_clean_up_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At most once a minute, with the reason; a directory that was removed needs no clean-up."""
    logs = tmp_path / "logs"
    logs.mkdir()
    Path(f"{rotated(logs, 1)}.gz.part").mkdir()
    file, _ = log_at(logs / "app.log", "10 B", "9 files", compress=True)
    for number in range(3):
        file.write([b"line %d\n" % number])
        until(lambda: not cleanup_threads())
    message = f"Cannot rotate or clean up the log file {logs / 'app.log'}: Is a directory. No lines are lost; retrying."
    assert caplog.messages == [message]
    removed, errors = log_at(tmp_path / "removed" / "app.log", "10 B", "9 files")
    removed.write([b"a\n"])
    shutil.rmtree(tmp_path / "removed")
    until(lambda: not cleanup_threads())
    assert (caplog.messages, errors.reported) == ([message], [])


def test_without_threads_lines_are_written(tmp_path: Path) -> None:
    """At the limit of threads, files are rotated but not cleaned up."""
    file, errors = log_at(tmp_path / "app.log", "10 B", "0 files")
    for _ in range(3):
        file.write([b"a line\n"])
    assert (file.written, len(names(tmp_path)), errors.reported) == (3, 3, [])


def test_a_relative_path_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is relative to the directory at `install`; `~` is the home directory."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files = [log_at(Path(name))[0] for name in ("logs/app.log", "~/app.log")]
    for directory in ("one", "two"):
        os.chdir(tmp_path / directory)
        for file in files:
            file.write([b"a\n"])
    for path in (tmp_path / "one" / "logs" / "app.log", tmp_path / "home" / "app.log"):
        assert path.read_bytes() == b"a\na\n"
    assert (names(tmp_path / "one"), names(tmp_path / "two")) == (["logs"], [])


def test_two_apps_of_one_process_share_a_file(tmp_path: Path) -> None:
    """Both write to it and rotate it in turn."""
    files = [log_at(tmp_path / "app.log", "100 B")[0] for _ in range(2)]
    for number in range(40):
        files[number % 2].write([b"line %02d\n" % number])
    assert contents(tmp_path) == b"".join(b"line %02d\n" % number for number in range(40))


def test_a_file_that_another_program_moves_away_is_created_again(tmp_path: Path) -> None:
    """The next line starts a new file, also if the directory was moved, or the file during our own rotation."""
    file, errors = log_at(tmp_path / "logs" / "app.log", "100 B")
    file.write([b"a\n"])
    file.path.rename(tmp_path / "taken")
    file.write([b"b\n"])
    assert file.path.read_bytes() == b"b\n"
    (tmp_path / "logs").rename(tmp_path / "elsewhere")
    file.write([b"c\n"])
    assert file.path.read_bytes() == b"c\n"
    real = os.rename

    def rename_twice(source: Any, target: Any) -> None:
        real(source, tmp_path / "taken again")
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename_twice)
        file.write([b"x" * 100 + b"\n"])
    assert file.path.read_bytes() == b"x" * 100 + b"\n"
    assert (file.written, sum(file.dropped.values()), errors.reported) == (4, 0, [])


def write_until_taken(file: LogFile, line: bytes) -> None:
    """Write a line again and again until the disk takes it."""
    before = file.written

    def write() -> bool:
        file.write([line])
        return file.written > before

    until(write)


def test_a_disk_that_refuses_is_reported_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines that the disk does not take are counted; the log says why, and at the end how many there were."""
    blocked = tmp_path / "blocked"
    file, errors = log_at(blocked / "app.log")
    blocked.write_bytes(b"")
    file.write([b"secret\n", b"b\n"])
    file.write([b"c\n"])
    assert file.dropped == {"queue_full": 0, "file_write": 3, "internal_error": 0}
    blocked.unlink()
    write_until_taken(file, b"d\n")
    file.write([b"e\n"])
    assert contents(blocked) == b"d\ne\n"
    path = blocked / "app.log"
    refused, recovered = caplog.messages
    assert refused.startswith(f"Cannot write the log file {path}: Not a directory. Lines are dropped from the file")
    assert recovered == f"Writing the log file {path} again; {file.dropped['file_write']} lines were dropped."
    assert not errors.reported


def test_a_full_disk_keeps_no_half_of_a_batch(tmp_path: Path) -> None:
    """What the disk took of a batch is removed again."""
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"first line\n"])
    with limited(resource.RLIMIT_FSIZE, 30):
        file.write([b"more than the disk takes\n"])
    assert (file.written, file.dropped["file_write"]) == (1, 1)
    assert contents(tmp_path) == b"first line\n"


@pytest.mark.usefixtures("no_locks")
def test_a_full_disk_without_locks_keeps_half_of_a_batch(tmp_path: Path) -> None:
    """It is terminated before the next line, because another process may have written after it."""
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"first line\n"])
    with limited(resource.RLIMIT_FSIZE, 30):
        file.write([b"more than the disk takes\n"])
    write_until_taken(file, b"later\n")
    assert contents(tmp_path) == b"first line\nmore than the disk \nlater\n"


def test_an_internal_error_is_reported(tmp_path: Path) -> None:
    """An error that the disk does not cause is counted as an internal error, and the next line is written."""
    file, errors = log_at(tmp_path / "app.log")
    wrong: Any = ["not bytes"]
    file.write(wrong)
    file.write([b"b\n"])
    assert (file.written, file.dropped) == (1, {"queue_full": 0, "file_write": 0, "internal_error": 1})
    assert [site for site, _ in errors.reported] == ["logs.file"]


def test_a_file_that_cannot_be_rotated_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No line is lost; the log says why."""
    path = tmp_path / ("x" * 240 + ".log")  # with a time, the name would be too long
    file, _ = log_at(path, "10 B")
    for number in range(4):
        file.write([b"line %d\n" % number])
    assert (names(tmp_path), file.written) == ([path.name], 4)
    assert caplog.messages == [
        f"Cannot rotate or clean up the log file {path}: File name too long. No lines are lost; retrying."
    ]


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The error says why and what to do; nothing is created by looking."""
    own = tmp_path / f"own.{os.getpid()}.log"
    own.mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    wrong = {
        str(tmp_path): "Is a directory",
        str(tmp_path / "own.{pid}.log"): "Is a directory",
        str(tmp_path / "link"): "a symbolic link; remove it",
        str(tmp_path / "pipe"): "not a regular file; remove it",
        str(tmp_path / "file" / "deep" / "app.log"): "Not a directory",
        str(tmp_path / ("x" * 300)): "File name too long",
        "a\0b": "embedded null",
        "~nobody-of-this-name/app.log": "home directory",
    }
    for path, reason in wrong.items():
        with pytest.raises(ValueError, match=re.escape(f"log_file: cannot write {path!r}: ")) as caught:
            log_at(Path(path))
        assert reason in str(caught.value)
        assert str(caught.value).endswith("choose a file in a directory that this process may write to")
    for path in ("/dev/stdout", "-"):
        with pytest.raises(ValueError, match="lines always go to standard output, so omit log_file"):
            log_at(Path(path))
    assert names(tmp_path) == sorted([own.name, "file", "link", "pipe"])


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """Take the rights to `path` away from this process; root becomes another user instead."""
    if os.geteuid():
        path.chmod(0o500)
        yield
        path.chmod(0o700)
        return
    os.setresuid(OTHER_USER, OTHER_USER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_path_without_permission_is_refused() -> None:
    """The error says for what the permission is missing."""
    with TemporaryDirectory() as name:  # which other users can look into
        directory = Path(name)
        directory.chmod(0o755)
        mine = directory / "app.log"
        mine.write_bytes(b"")
        log_at(mine)
        mine.chmod(0o400)
        with without_rights(directory):
            for path, reason in (
                (mine, "Permission denied"),
                (directory / "new" / "x.log", f"to write in {directory}"),
            ):
                with pytest.raises(ValueError, match=re.escape(f"{reason};")):
                    log_at(path)
        assert names(directory) == [mine.name]


def test_a_line_that_a_killed_process_tore_is_removed(tmp_path: Path) -> None:
    """The start of one of our lines is removed; text of another program is terminated."""
    for number, (left, kept) in enumerate(
        {
            b'{"a": 1}\n{"b": tor': b'{"a": 1}\n',
            b'{"tor': b"",
            b"of another program": b"of another program\n",
            b"{" * 70_000: b"{" * 70_000 + b"\n",
            b'{"a": 1}\n': b'{"a": 1}\n',
        }.items()
    ):
        path = tmp_path / str(number) / "app.log"
        path.parent.mkdir()
        path.write_bytes(left)
        log_at(path)[0].write([b'{"c": 2}\n'])
        assert path.read_bytes() == kept + b'{"c": 2}\n'


def run(script: str, *arguments: str) -> None:
    """Run a script that has `log_at`."""
    start = (
        "import os, sys\nfrom fastapi_observe.logs.file.file import LogFile\n"
        "def log_at(path, rotation):\n"
        "    report = lambda site, exc: sys.exit(str(exc))\n"
        "    return LogFile(path, rotation, None, compress=True, on_internal_error=report)\n"
    )
    done = interpreter.run(start + script, *arguments)
    assert done.returncode == 0, done.stderr


def test_a_forked_child_opens_the_file_itself(tmp_path: Path) -> None:
    """It shares no lock with its parent, and has a file of its own where the name has the process id."""
    script = (
        "file = log_at(sys.argv[1], None)\n"
        "file.write([b'parent\\n'])\n"
        "child = os.fork()\n"
        "file.write([b'after\\n' if child else b'child\\n'])\n"
        "child and os.waitpid(child, 0)\n"
    )
    for name in ("app.log", "app.{pid}.log"):
        directory = tmp_path / str(len(name))
        run(script, str(directory / name))
        assert sorted(contents(directory).splitlines()) == [b"after", b"child", b"parent"]
        assert len(names(directory)) == 1 + ("{pid}" in name)


def test_several_processes_rotate_one_file(tmp_path: Path) -> None:
    """Every line is there once and whole."""
    batches = volume(50)
    script = (
        "file = log_at(sys.argv[1], '5 KB')\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if not child: children = []; break\n"
        "    children.append(child)\n"
        f"for at in range({batches}):\n"
        "    file.write([b'%d %d %d\\n' % (os.getpid(), at, each) for each in range(100)])\n"
        "    if at % 5 == 4: file.rotated_files.clean_up(file.path.parent)\n"
        "assert not any(file.dropped.values())\n"
        "for child in children: assert os.waitpid(child, 0)[1] == 0\n"
    )
    for name in ("app.log", "app.{pid}.log"):
        directory = tmp_path / str(len(name))
        run(script, str(directory / name))
        lines = [tuple(map(int, line.split())) for line in contents(directory).splitlines()]
        processes = {line[0] for line in lines}
        assert len(processes) == 4
        assert sorted(lines) == sorted(
            (pid, at, each) for pid in processes for at in range(batches) for each in range(100)
        )


@pytest.mark.usefixtures("no_locks")
def test_without_locks_lines_are_written(tmp_path: Path) -> None:
    """Files are rotated but not compressed, which two processes could do at once."""
    file, errors = log_at(tmp_path / "app.log", "10 B", compress=True)
    for number in range(3):
        file.write([b"line %d\n" % number])
    file.rotated_files.clean_up(tmp_path)
    assert contents(tmp_path) == b"line 0\nline 1\nline 2\n"
    assert (len(names(tmp_path)), errors.reported) == (3, [])


def test_a_process_that_is_stopped_with_the_lock_is_passed_by(tmp_path: Path) -> None:
    """After a second its file is renamed, and lines go to a new one; it finishes its own in the renamed file."""
    file, errors = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    held = os.open(tmp_path / "app.log", os.O_WRONLY | os.O_APPEND)
    fcntl.flock(held, fcntl.LOCK_EX)
    file.write([b"b\n"])
    os.write(held, b"finished late\n")
    os.close(held)
    assert (tmp_path / "app.log").read_bytes() == b"b\n"
    assert sorted(contents(tmp_path).splitlines()) == [b"a", b"b", b"finished late"]
    assert (file.written, errors.reported) == (2, [])


def test_a_file_that_never_stays_is_given_up(tmp_path: Path) -> None:
    """A program that takes the file away each time cannot occupy the writer for ever."""
    file, _ = log_at(tmp_path / "app.log")
    with replacing(is_same_file, lambda *_: False):
        file.write([b"line\n"])
    assert file.dropped["file_write"] == 1


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a directory that everyone may write to, like /tmp."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's; without the right to do so, be another user."""
    if os.geteuid() == 0:
        os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)


def test_a_file_of_another_user_is_not_written(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could read and change every line; where only one user can put files, that user is trusted."""
    path = shared / "app.log"
    path.write_bytes(b"")
    path.chmod(0o666)
    give_away(path, monkeypatch)
    owner = path.stat().st_uid
    with pytest.raises(ValueError, match=rf"app.log': owned by user {owner}; remove it, run chown"):
        log_at(path)
    shared.chmod(0o755)
    give_away(shared, monkeypatch)
    log_at(path)[0].write([b"a\n"])
    assert path.read_bytes() == b"a\n"


def test_links_and_pipes_are_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A symbolic link, a hard link or a pipe in the place of the file could lead anywhere."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    path = tmp_path / "app.log"
    for put in (path.symlink_to, path.hardlink_to):
        file, _ = log_at(path)
        put(victim)
        file.write([b"a\n"])
        assert (victim.read_bytes(), file.dropped["file_write"]) == (b"untouched", 1)
        with pytest.raises(ValueError, match=r"app\.log"):
            log_at(path)
        path.unlink()
    file, _ = log_at(path)
    os.mkfifo(path)
    file.write([b"a\n"])
    assert file.dropped["file_write"] == 1
    assert "has a second hard link; remove it or choose a directory of your own" in caplog.text
    assert "not a regular file; remove it" in caplog.text


def test_rotated_files_of_another_user_stay(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are neither compressed nor removed; nothing is compressed into a hard link either."""
    theirs, twice, ours = (rotated(shared, day, b"text\n") for day in (1, 2, 3))
    victim = shared / "victim"
    victim.write_bytes(b"untouched")
    (shared / "more").hardlink_to(twice)
    if os.geteuid() == 0:
        give_away(theirs, monkeypatch)
    else:
        (shared / "even more").hardlink_to(theirs)
    part = Path(f"{ours}.gz.part")
    part.hardlink_to(victim)
    file, _ = log_at(shared / "app.log", None, "1 files", compress=True)
    with pytest.raises(PermissionError):
        file.rotated_files.clean_up(shared)
    assert (victim.read_bytes(), theirs.read_bytes(), twice.read_bytes()) == (b"untouched", b"text\n", b"text\n")
    file.rotated_files.clean_up(shared)
    assert Path(f"{ours}.gz").exists()
    assert not ours.exists()
