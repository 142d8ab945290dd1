"""The rotating log file: nothing lost, nothing torn, nothing touched that is not its own."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastapi_observe.logs.file import compression, lock, opening
from fastapi_observe.logs.file import file as log_file
from fastapi_observe.logs.file import outage as log_outage
from fastapi_observe.logs.file import retention as log_retention
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.file.names import Rotation, parse_rotation
from fastapi_observe.logs.file.retention import Retention, parse_retention


class Faulty:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, BaseException]] = []

    def __call__(self, site: str, exc: BaseException) -> None:
        """Keep it."""
        self.told.append((site, exc))


def log_at(
    path: Path, rotation: str | None = None, retention: str | None = None, *, compress: bool = False
) -> tuple[LogFile, Faulty]:
    """Build a log file and the list of its faults."""
    faulty = Faulty()
    return LogFile(str(path), parse_rotation(rotation), parse_retention(retention), compress, faulty), faulty


def tend(file: LogFile) -> None:
    """Do all of the work."""
    while file.run_maintenance():
        pass


FIRST = b'{"timestamp":"2026-01-01T00:00:00.000000Z","level":"info"}\n'
"""How a file of ours begins."""


def dead_process() -> int:
    """Return the id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def names(folder: Path) -> list[str]:
    """List a folder."""
    return sorted(each.name for each in folder.iterdir())


def contents(folder: Path) -> bytes:
    """Join everything that was logged, oldest first."""
    files = sorted(folder.iterdir(), key=lambda each: (each.stat().st_mtime_ns, each.name))
    return b"".join(gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes() for each in files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("100 MB", Rotation(100_000_000, None)),
        ("1GB", Rotation(10**9, None)),
        ("500 kb", Rotation(500_000, None)),
        ("1.5 KiB", Rotation(1536, None)),
        ("0.1 B", Rotation(1, None)),
        ("1 day", Rotation(None, 86_400)),
        ("12 hours", Rotation(None, 43_200)),
        ("1 hour", Rotation(None, 3600)),
        ("2 weeks", Rotation(None, 1_209_600)),
    ],
)
def test_rotation_is_read(text: str | None, expected: Rotation | None) -> None:
    """Sizes and ages are understood."""
    assert parse_rotation(text) == expected


@pytest.mark.parametrize("text", ["", "big", "100", "MB", "0 MB", "0 days", "-1 day", "1 file", "1e9 MB", "100 MBs x"])
def test_a_wrong_rotation_is_named(text: str) -> None:
    """A wrong value is an error that names it and what is accepted."""
    with pytest.raises(ValueError, match=r"log_rotation: got '.*', accepts a size such as '500 KB'"):
        parse_rotation(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("10 files", Retention(10)),
        ("1 file", Retention(1)),
        ("0 files", Retention(0)),
        ("7 days", Retention(None, 604_800)),
        ("90 minutes", Retention(None, 5400)),
        ("1 GB", Retention(None, None, 10**9)),
        ("10 files, 7 days, 1 GB", Retention(10, 604_800, 10**9)),
        ("2 KiB,1 day", Retention(None, 86_400, 2048)),
    ],
)
def test_retention_is_read(text: str | None, expected: Retention | None) -> None:
    """Numbers of files, ages and sizes are understood, alone and together."""
    assert parse_retention(text) == expected


@pytest.mark.parametrize("text", ["", "many files", "1.5 files", "10", "0 days", "0 MB", "1 file, 2 files"])
def test_a_wrong_retention_is_named(text: str) -> None:
    """A wrong value is an error that names it and what is accepted."""
    with pytest.raises(ValueError, match=r"log_retention: got '.*', accepts a number such as '10 files'"):
        parse_retention(text)


@pytest.mark.parametrize(
    ("given", "name", "rotated"),
    [
        ("app.log", "app.log", r"app\.\d{8}T\d{6}\.\d{6}\.log"),
        ("app-{pid}.log", "app-{pid}.log", r"app-{pid}\.\d{8}T\d{6}\.\d{6}\.log"),
        ("app", "app", r"app\.\d{8}T\d{6}\.\d{6}"),
        ("app.{pid}", "app.{pid}", r"app\.{pid}\.\d{8}T\d{6}\.\d{6}"),
        ("app.2024.log", "app.2024.log", r"app\.2024\.\d{8}T\d{6}\.\d{6}\.log"),
    ],
)
def test_the_path_is_what_was_asked_for(tmp_path: Path, given: str, name: str, rotated: str) -> None:
    """The file has exactly its name, the process id where it was asked for; folders are made; others cannot read it."""
    file, faulty = log_at(tmp_path / "logs" / given, "10 B", "9 files")
    pid = str(os.getpid())
    path = tmp_path / "logs" / name.replace("{pid}", pid)
    file.write([b"a\n", b"b\n"])
    assert path == file.path
    assert path.read_bytes() == b"a\nb\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    file.write([b"a longer one\n"])
    tend(file)
    file.close()
    (other,) = set(names(tmp_path / "logs")) - {path.name}
    assert re.fullmatch(rotated.replace("{pid}", pid), other)
    assert (file.written, sum(file.dropped.values()), faulty.told) == (3, 0, [])


def test_a_file_is_continued(tmp_path: Path) -> None:
    """A closed file is opened again by the next line; a process with the same id appends."""
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    file.close()
    file.close()
    file.write([b"b\n"])
    assert contents(tmp_path) == b"a\nb\n"
    assert len(names(tmp_path)) == 1


def test_rotation_by_size(tmp_path: Path) -> None:
    """No file grows over the size, no line is lost, torn or out of order."""
    file, faulty = log_at(tmp_path / "app.log", "100 B")
    lines = [b"line %02d\n" % number for number in range(50)]
    for at in range(0, 50, 5):
        file.write(lines[at : at + 5])
    assert contents(tmp_path) == b"".join(lines)
    assert all(each.stat().st_size <= 100 for each in tmp_path.iterdir())
    assert len(names(tmp_path)) > 3
    file.write([b"x" * 500 + b"\n"])
    assert not faulty.told


def test_rotation_by_age(tmp_path: Path) -> None:
    """A file that is too old is followed by a new one."""
    file, _ = log_at(tmp_path / "app.log", "0.000001 seconds")
    file.write([b"a\n"])
    file.write([b"b\n"])
    assert len(names(tmp_path)) == 2
    young, _ = log_at(tmp_path / "young.log", "1 hour")
    young.write([b"a\n"])
    young.write([b"b\n"])
    assert len(names(tmp_path)) == 3


def test_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated files are compressed piece by piece, keep their time and can be read by nobody else."""
    monkeypatch.setattr(compression, "COMPRESS_CHUNK_SIZE", 16)
    file, faulty = log_at(tmp_path / "app.log", "100 B", compress=True)
    for number in range(30):
        file.write([b"line %02d\n" % number])
    tend(file)
    packed = [each for each in tmp_path.iterdir() if each.suffix == ".gz"]
    assert len(packed) == len(names(tmp_path)) - 1
    assert all(stat.S_IMODE(each.stat().st_mode) & 0o137 == 0 for each in packed)
    assert contents(tmp_path) == b"".join(b"line %02d\n" % number for number in range(30))
    assert not faulty.told


def test_retention_by_number_touches_nothing_else(tmp_path: Path) -> None:
    """The newest rotated files are kept; files of other names, links and folders stay, however alike."""
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
        path = tmp_path / f"app.2025020{number}T000000.000000.log.gz"
        path.write_bytes(gzip.compress(b"old"))
    file, faulty = log_at(tmp_path / "app.log", "100 MB", "2 files", compress=True)
    file.write([b"a\n"])
    tend(file)
    kept = ["app.20250203T000000.000000.log.gz", "app.20250204T000000.000000.log.gz", "app.log", f"app.{stamp}.log"]
    assert names(tmp_path) == sorted([*foreign, *kept])
    assert not faulty.told


def test_retention_by_age(tmp_path: Path) -> None:
    """Rotated files that are too old are removed."""
    for name, age in (("20250101T000000.000000", 7200), ("20250102T000000.000000", 60)):
        path = tmp_path / f"app.{name}.log"
        path.write_bytes(b"old")
        os.utime(path, (time.time() - age,) * 2)
    file, _ = log_at(tmp_path / "app.log", None, "1 hour")
    file.write([b"a\n"])
    tend(file)
    assert names(tmp_path) == ["app.20250102T000000.000000.log", "app.log"]


@pytest.mark.parametrize("name", ["app.log", "app.{pid}.log"])
@pytest.mark.parametrize("compress", [True, False])
def test_retention_by_size_holds_at_every_moment(
    tmp_path: Path,
    name: str,
    compress: bool,  # noqa: FBT001 - a case
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All files together never have more than the total size, though rotation is off."""
    monkeypatch.setattr(compression, "COMPRESS_CHUNK_SIZE", 64)
    monkeypatch.setattr(log_file, "MEASURE_INTERVAL", 0.0)
    left = tmp_path / f"app.{dead_process()}.log"
    left.write_bytes(FIRST + b"x" * 240)
    file, faulty = log_at(tmp_path / name, None, "2 KB", compress=compress)
    for number in range(300):
        file.write([b"line %03d %s\n" % (number, os.urandom(20).hex().encode())])
        file.run_maintenance()
        ours = [each for each in tmp_path.iterdir() if each != left or "{pid}" in name]
        assert sum(each.stat().st_size for each in ours) <= 2000
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) > 1000
    assert left.exists() == ("{pid}" not in name)
    assert (file.written, sum(file.dropped.values()), faulty.told) == (300, 0, [])


def test_the_files_of_others_leave_less_room(tmp_path: Path) -> None:
    """Where the living processes' files leave no room for one's own to grow, it is begun anew; their files stay."""
    (tmp_path / "app.7.log").write_bytes(FIRST + b"x" * 790)
    with (tmp_path / "app.7.log").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        file, _ = log_at(tmp_path / "app.{pid}.log", None, "1000 B")
        for _ in range(30):
            file.write([b"x" * 100 + b"\n"])
            tend(file)
        assert "app.7.log" in names(tmp_path)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 1000
    assert (file.written, file.dropped["disk"]) == (30, 0)


def test_what_is_rotated_is_compressed_whole(tmp_path: Path) -> None:
    """A rotated file that ends in the middle of a line of another program is compressed from its beginning."""
    rotated = tmp_path / "app.20250101T000000.000000.log"
    rotated.write_bytes(b"first\nsecond")
    assert list(compression.compress(rotated, tmp_path / "part"))
    assert contents(tmp_path) == b"first\nsecond\n"


def test_a_line_that_is_larger_than_everything_is_dropped(tmp_path: Path) -> None:
    """What cannot be within the total size is counted; the next line is written when the file is tried again."""
    file, _ = log_at(tmp_path / "app.log", None, "100 B")
    file.write([b"a\n"])
    file.write([b"x" * 200 + b"\n"])
    assert (file.written, file.dropped) == (1, {"queue_full": 0, "disk": 1, "internal": 0})
    file._try_again = 0.0
    file.write([b"b\n"])
    assert contents(tmp_path).endswith(b"b\n")


def test_files_of_dead_processes_are_adopted(tmp_path: Path) -> None:
    """What a dead process left counts as rotated; what a living one has, locked or not, is left alone."""
    dead, held_by = dead_process(), dead_process()
    alive = (f"app.{os.getppid()}.log", "app.1.log")
    for name in (f"app.{dead}_1.log", *alive):
        (tmp_path / name).write_bytes(FIRST)
    with (tmp_path / f"app.{held_by}.log").open("wb") as held:
        held.write(FIRST)
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        file, faulty = log_at(tmp_path / "app.{pid}.log", compress=True)
        file.write([b"a\n"])
        tend(file)
        left = set(names(tmp_path)) - {f"app.{held_by}.log", file.path.name, *alive}
    assert len(left) == 1
    adopted = left.pop()
    assert adopted.startswith(f"app.{dead}_1.2")
    assert adopted.endswith(".log.gz")
    assert not faulty.told


def test_files_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number in a name makes no log file of ours: it begins with a line of ours, and processes have such ids."""
    monkeypatch.setattr(log_file, "MEASURE_INTERVAL", 0.0)
    dead = dead_process()
    others = {f"app.{dead}.log": b"of another program\n" * 99, "app.20261122.log": FIRST, f"app.0{dead}.log": FIRST}
    for name, text in others.items():
        (tmp_path / name).write_bytes(text)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / f"app.{dead}_1.log").mkdir()
    (tmp_path / f"app.{dead}_2.log").symlink_to(tmp_path / "app.20261122.log")
    file, faulty = log_at(tmp_path / "app.{pid}.log", "100 B", "1 files, 1 day, 1 KB", compress=True)
    for _ in range(20):
        file.write([FIRST])
        tend(file)
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    assert (file.written, sum(file.dropped.values()), faulty.told) == (20, 0, [])
    assert len(names(tmp_path)) == len(others) + 4


def test_a_name_may_have_the_process_id_twice(tmp_path: Path) -> None:
    """Where the id is in the folder, or twice in the name, it is the same everywhere."""
    dead = dead_process()
    (tmp_path / f"{dead}-{dead}.log").write_bytes(FIRST)
    (tmp_path / f"{dead}-{dead}7.log").write_bytes(FIRST)
    for name in ("{pid}-{pid}.log", "of-{pid}/app.log"):
        file, _ = log_at(tmp_path / name)
        file.write([FIRST])
        tend(file)
    found = set(names(tmp_path)) - {f"{os.getpid()}-{os.getpid()}.log", f"of-{os.getpid()}", f"{dead}-{dead}7.log"}
    assert [each.startswith(f"{dead}-{dead}.2") for each in found] == [True]


def test_a_relative_path_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder takes the file not along; `~` is the user's own folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files = [log_at(Path(name))[0] for name in ("logs/app.log", "~/app.log")]
    for folder in ("one", "two"):
        os.chdir(tmp_path / folder)
        for file in files:
            file.write([b"a\n"])
    for path in (tmp_path / "one" / "logs" / "app.log", tmp_path / "home" / "app.log"):
        assert path.read_bytes() == b"a\na\n"
    assert names(tmp_path / "one") == ["logs"]
    assert names(tmp_path / "two") == []


def test_two_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two apps of one process, or two containers on one volume, write to two files; at last there are no names left."""
    monkeypatch.setattr(opening, "MAX_NAMES", 2)
    files = [log_at(tmp_path / "app.{pid}.log") for _ in range(3)]
    for file, _ in files:
        file.write([b"a\n"])
    assert names(tmp_path) == [f"app.{os.getpid()}.log", f"app.{os.getpid()}_1.log"]
    assert files[2][0].dropped["disk"] == 1


def test_two_apps_of_one_process_share_a_file(tmp_path: Path) -> None:
    """Without the process id in the name both write to the one file, in turn."""
    files = [log_at(tmp_path / "app.log", "100 B")[0] for _ in range(2)]
    for number in range(40):
        files[number % 2].write([b"line %02d\n" % number])
    assert contents(tmp_path) == b"".join(b"line %02d\n" % number for number in range(40))


@pytest.mark.parametrize("name", ["app.log", "app.{pid}.log"])
def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path, name: str) -> None:
    """When another program takes the file, the next line begins a new one; when it takes the folder, that too."""
    file, faulty = log_at(tmp_path / "logs" / name, "100 B")
    file.write([b"a\n"])
    file.path.rename(tmp_path / "taken")
    file.write([b"b\n"])
    assert file.path.read_bytes() == b"b\n"
    file.path.rename(tmp_path / "taken again")
    (tmp_path / "logs").rename(tmp_path / "elsewhere")
    file.write([b"c\n"])
    assert file.path.read_bytes() == b"c\n"
    assert (file.written, sum(file.dropped.values()), faulty.told) == (3, 0, [])


def test_a_file_that_is_removed_during_the_write_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that went into a file without a name goes into the next one too."""
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    real = os.write

    def remove_first(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", real)
        file.path.unlink()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", remove_first)
    file.write([b"b\n"])
    assert (contents(tmp_path), file.written) == (b"b\n", 2)


def test_a_file_that_is_renamed_while_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process was quicker with the same, both go on with the new file."""
    file, _ = log_at(tmp_path / "app.log", "10 B")
    file.write([b"line 1\n"])
    real = file._file.rename

    def twice() -> None:
        monkeypatch.undo()
        file.path.rename(tmp_path / "taken")
        real()

    monkeypatch.setattr(file._file, "rename", twice)
    file.write([b"line 2\n"])
    assert (file.path.read_bytes(), file.written) == (b"line 2\n", 2)


def test_a_disk_that_refuses_is_counted_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines that the disk does not take are counted, told of and no reason to raise; later lines are written again."""
    blocked = tmp_path / "blocked"
    file, faulty = log_at(blocked / "app.log")
    blocked.write_bytes(b"")
    file.write([b"secret\n", b"b\n"])
    file.write([b"c\n"])
    assert file.dropped == {"queue_full": 0, "disk": 3, "internal": 0}
    blocked.unlink()
    file._try_again = 0.0
    file.write([b"d\n"])
    assert contents(blocked) == b"d\n"
    (told,) = caplog.messages
    assert told == f"the log file {blocked / 'app.log'} loses lines: Not a directory (it is tried again twice a second)"
    file._outage._spoke -= 11
    file.write([b"e\n"])
    assert caplog.messages[1:] == [f"the log file {blocked / 'app.log'} is written again, 3 lines were lost"]
    assert not faulty.told


def test_a_fault_of_ours_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no fault of the disk is told as ours, and no line is forgotten."""
    file, faulty = log_at(tmp_path / "app.log")

    def fail() -> int:
        raise RuntimeError("ours")

    with monkeypatch.context() as patch:
        patch.setattr(file._file, "size", fail)
        file.write([b"a\n"])
    file.write([b"b\n"])
    assert (file.written, file.dropped) == (1, {"queue_full": 0, "disk": 0, "internal": 1})
    assert [(site, str(exc)) for site, exc in faulty.told] == [("logs.file", "ours")]


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is an error that says why and what to do; looking leaves no trace."""
    own = tmp_path / f"own.{os.getpid()}.log"
    own.mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    wrong = {
        tmp_path: f"{tmp_path} is a folder",
        tmp_path / "own.{pid}.log": f"{own} is a folder",
        tmp_path / "link": f"{tmp_path / 'link'} is not a plain file",
        tmp_path / "file" / "deep" / "app.log": f"{tmp_path / 'file'} is not a folder",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, reason in wrong.items():
        with pytest.raises(ValueError, match=re.escape(f"log_file: {str(path)!r} cannot be written: ")) as caught:
            log_at(path)
        assert reason in str(caught.value)
        assert str(caught.value).endswith("name a file in a folder that exists and that this process may write to")
    for given, why in {
        "a\0b": "no file has a null character in its name",
        "~nobody-of-this-name/app.log": "home directory",
        "/proc/app.log": "in /proc",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"log_file: {given!r} cannot be written: ")) as caught:
            log_at(Path(given))
        assert why in str(caught.value)
    for given in ("/dev/stdout", "-"):
        with pytest.raises(ValueError, match="lines are written to standard output anyway: leave log_file away"):
            log_at(Path(given))
    mine = tmp_path / "app.log"
    mine.write_bytes(b"")
    log_at(mine)
    real = os.open

    def refusing(path: Any, *more: Any, **named: Any) -> int:
        if os.fspath(path) == mine.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path, reason in ((mine, f"read and write {mine}"), (tmp_path / "new" / "x.log", f"write in {tmp_path}")):
        with pytest.raises(ValueError, match=re.escape(f"no permission to {reason};")):
            log_at(path)
    assert names(tmp_path) == sorted([mine.name, own.name, "file", "link"])


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """A link that is put in the place of the log file is not followed."""
    (tmp_path / "target").write_bytes(b"")
    file, _ = log_at(tmp_path / "app.log")
    (tmp_path / "app.log").symlink_to(tmp_path / "target")
    file.write([b"a\n"])
    assert (tmp_path / "target").read_bytes() == b""
    assert file.dropped["disk"] == 1


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (b'{"a": 1}\n{"b": tor', b'{"a": 1}\n'),
        (b'{"tor', b""),
        (b"of another program", b"of another program\n"),
        (b"{" * 70_000, b"{" * 70_000 + b"\n"),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
    ],
)
def test_a_line_that_a_killed_process_has_torn_is_cut_off(tmp_path: Path, left: bytes, kept: bytes) -> None:
    """The rest of a line of ours is taken back; what another program has left is ended, and nothing of it removed."""
    (tmp_path / "app.log").write_bytes(left)
    file, _ = log_at(tmp_path / "app.log")
    file.write([b'{"c": 2}\n'])
    assert contents(tmp_path) == kept + b'{"c": 2}\n'


def test_the_age_of_a_file_is_that_of_its_first_line(tmp_path: Path) -> None:
    """A process that is started anew does not begin to count from zero."""
    for name, first in (("old", "2025-01-01T00:00:00.000000Z"), ("wrong", "2025-13-01T00:00:00.000000Z")):
        (tmp_path / name).write_bytes(b'{"timestamp":"%s","level":"info"}\n' % first.encode())
        log_at(tmp_path / name, "1 day")[0].write([b"a\n"])
    assert [each.split(".")[0] for each in names(tmp_path)] == ["old", "old", "wrong"]


def test_tending_fails_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on rotated files that fails is told of once and given up until the next rotation; nothing is left of it."""
    (tmp_path / "app.20250101T000000.000000.log").write_bytes(b"old")
    file, faulty = log_at(tmp_path / "app.log", compress=True)
    file.write([b"a\n"])

    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "no")

    with monkeypatch.context() as patch:
        patch.setattr(compression, "_write", refuse)
        tend(file)
    assert not file.run_maintenance()
    assert not faulty.told
    assert names(tmp_path) == ["app.20250101T000000.000000.log", "app.log"]
    file.close()
    file.write([b"b\n"])
    tend(file)
    assert names(tmp_path) == ["app.20250101T000000.000000.log.gz", "app.log"]


def test_a_rotation_during_the_work_begins_it_again(tmp_path: Path) -> None:
    """Files rotated while others are compressed get their turn."""
    file, _ = log_at(tmp_path / "app.log", "10 B", compress=True)
    file.write([b"line 1\n"])
    file.write([b"line 2\n"])
    assert file.run_maintenance()
    file.write([b"line 3\n"])
    tend(file)
    assert [name.endswith(".gz") for name in names(tmp_path)].count(True) == 2


def test_another_process_may_be_quicker(tmp_path: Path) -> None:
    """Files that another process compresses, adopts or removes at the same time are left to it."""
    rotated, part = tmp_path / "app.20250101T000000.000000.log", tmp_path / "app.log.gz.part"
    rotated.write_bytes(b"old")
    part.write_bytes(b"")
    for each in (rotated, part):
        with each.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert list(compression.compress(rotated, part)) == []
    assert names(tmp_path) == [rotated.name, part.name]
    assert list(compression.compress(tmp_path / "gone.log", part)) == []
    work = compression.compress(rotated, part)
    next(work)
    rotated.unlink()  # to make room
    assert list(work) == []
    assert names(tmp_path) == []
    file, _ = log_at(tmp_path / "app.{pid}.log", None, "0 files")
    file._keeper._adopt(tmp_path / "app.9.log")
    file._keeper._remove_old(tmp_path)
    assert names(tmp_path) == []


def test_what_a_killed_process_has_left_half_done_is_ended(tmp_path: Path) -> None:
    """A compressed file beside its original is whole: the original goes. A half compressed one is begun anew."""
    done, half = "app.20250101T000000.000000.log", "app.20250102T000000.000000.log"
    (tmp_path / done).write_bytes(b"first\n")
    (tmp_path / f"{done}.gz").write_bytes(gzip.compress(b"first\n"))
    (tmp_path / half).write_bytes(b"second\n")
    (tmp_path / "app.log.gz.part").write_bytes(b"half" * 100)
    file, _ = log_at(tmp_path / "app.log", compress=True)
    file.write([b"third\n"])
    tend(file)
    assert names(tmp_path) == [f"{done}.gz", f"{half}.gz", "app.log"]
    assert contents(tmp_path) == b"first\nsecond\nthird\n"


def test_two_rotations_in_one_moment_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clock stands still, or goes back, no rotated file takes the place of another."""
    monkeypatch.setattr(opening, "time", lambda: 1_750_000_000.0)
    file, _ = log_at(tmp_path / "app.log", "10 B", compress=True)
    for number in range(6):
        file.write([b"line %d\n" % number])
        if number == 3:
            tend(file)
    assert sorted(contents(tmp_path).splitlines()) == [b"line %d" % number for number in range(6)]


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    """Four processes that rotate files of one pattern at the same time keep every line, whole."""
    script = (
        "import sys; from fastapi_observe.logs.file.file import LogFile\n"
        "from fastapi_observe.logs.file.names import parse_rotation\n"
        "file = LogFile(sys.argv[1], parse_rotation('20 KB'), None, True, lambda site, exc: sys.exit(str(exc)))\n"
        "for at in range(50):\n"
        "    file.write([b'%s %d %d\\n' % (sys.argv[2].encode(), at, each) for each in range(100)])\n"
        "    file.run_maintenance()\n"
        "while file.run_maintenance(): pass\n"
        "sys.exit(sum(file.dropped.values()))\n"
    )
    for name in ("app.log", "app.{pid}.log"):
        folder = tmp_path / str(len(name))
        command = [sys.executable, "-c", script, str(folder / name)]
        running = [subprocess.Popen([*command, str(name)]) for name in range(4)]  # noqa: S603 - our own script
        assert [each.wait(120) for each in running] == [0, 0, 0, 0]
        lines = contents(folder).decode().splitlines()
        assert sorted(lines) == sorted(f"{n} {at} {each}" for n in range(4) for at in range(50) for each in range(100))


def test_a_forked_child_opens_its_own(tmp_path: Path) -> None:
    """A child has a lock of its own, or a file; lines that wait and work that is not done stay its parent's."""
    script = (
        "import os, sys; from fastapi_observe.logs.file.file import LogFile\n"
        "file = LogFile(sys.argv[1], None, None, True, print)\n"
        "file.write([b'parent\\n'])\n"
        "file._waiting.append(b'waits\\n')\n"
        "child = os.fork()\n"
        "file.write([b'after\\n' if child else b'child\\n'])\n"
        "child and os.waitpid(child, 0)\n"
    )
    for name in ("app.log", "app.{pid}.log"):
        folder = tmp_path / str(len(name))
        subprocess.run([sys.executable, "-c", script, str(folder / name)], timeout=30, check=True)  # noqa: S603
        found = sorted(contents(folder).splitlines())
        assert found == [b"after", b"child", b"parent", b"waits"]
        assert len(names(folder)) == 1 + ("{pid}" in name)


@pytest.mark.parametrize("name", ["app.log", "app.{pid}.log"])
def test_a_file_that_was_renamed_before_the_lock_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between opening and locking another process may rename a file, or put a new one there: neither is touched."""
    locked = lock.try_lock

    def renamed_meanwhile(descriptor: int) -> bool | None:
        for each in tmp_path.glob("app*.log"):
            each.rename(each.with_suffix(".elsewhere"))
        monkeypatch.setattr(opening, "try_lock", locked)
        return locked(descriptor)

    monkeypatch.setattr(opening, "try_lock", renamed_meanwhile)
    file, _ = log_at(tmp_path / name)
    file.write([b"line\n"])
    assert b"line\n" in {each.read_bytes() for each in tmp_path.glob("app*.log")}
    other = tmp_path / "app.9.log"
    other.write_bytes(b"new")
    monkeypatch.setattr(log_retention, "is_same_file", lambda *_: False)
    file._keeper._adopt(other)
    assert other.read_bytes() == b"new"


def test_a_file_that_never_stays_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes the file away each time cannot keep the writer busy for ever."""
    monkeypatch.setattr(opening, "is_same_file", lambda *_: False)
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"line\n"])
    assert file.dropped["disk"] == 1


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are written all the same; only files of the dead are left as they are."""

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "app.7.log").write_bytes(b"x")
    for name in ("app.log", "app.{pid}.log"):
        file, _ = log_at(tmp_path / name)
        file.write([b"a\n"])
        tend(file)
        assert file.path.read_bytes() == b"a\n"
    assert (tmp_path / "app.7.log").exists()


def test_a_lock_that_is_not_given_back_is_stepped_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in a hurry leave their lines to the next call; that call renames the file and goes on with a new one."""
    monkeypatch.setattr(opening, "HOLDER_PATIENCE", 0.01)
    file, faulty = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    held = os.open(tmp_path / "app.log", os.O_WRONLY | os.O_APPEND)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert file.write([b"b\n"], 0.005)
    assert (len(file), file.written) == (1, 1)
    monkeypatch.setattr(log_file, "KEPT_LINES", 2)
    assert file.write([b"c\n", b"d\n"], 0.0)
    assert (len(file), file.dropped["queue_full"]) == (2, 1)
    file.write([])
    os.write(held, b"what the other was about\n")
    os.close(held)
    assert (tmp_path / "app.log").read_bytes() == b"b\nc\n"
    assert sorted(contents(tmp_path).splitlines()) == [b"a", b"b", b"c", b"what the other was about"]
    assert (len(file), file.written, faulty.told) == (0, 3, [])


def test_a_lock_in_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file cannot be renamed either, lines are lost and counted; where another was quicker, none is."""
    monkeypatch.setattr(opening, "HOLDER_PATIENCE", 0.01)
    for exc, lost in ((PermissionError(errno.EACCES, "no"), 1), (FileNotFoundError(errno.ENOENT, "no"), 0)):
        file, _ = log_at(tmp_path / "app.log")
        file.write([b"a\n"])
        with (tmp_path / "app.log").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def refuse(exc: OSError = exc, held: Any = held) -> None:
                fcntl.flock(held, fcntl.LOCK_UN)
                raise exc

            monkeypatch.setattr(file._file, "rename", refuse)
            file.write([b"b\n"])
        assert file.dropped["disk"] == lost


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no room for a line, a file or a name, the oldest rotated files go; then lines do."""
    for number in range(5):
        (tmp_path / f"app.2025010{number}T000000.000000.log").write_bytes(b"old\n")
    file, _ = log_at(tmp_path / "app.log", "100 B")
    real_open, real_write = os.open, os.write

    def full(exc: int, left: int) -> Any:
        def refuse(path: Any, *arguments: Any, **more: Any) -> int:
            if len(names(tmp_path)) > left:
                raise OSError(exc, os.strerror(exc))
            return (real_write if isinstance(path, int) else real_open)(path, *arguments, **more)

        return refuse

    monkeypatch.setattr(os, "open", full(errno.ENOSPC, 4))
    file.write([b"line 1\n"])
    assert (file.written, len(names(tmp_path))) == (1, 5)
    monkeypatch.setattr(os, "open", real_open)
    monkeypatch.setattr(os, "write", full(errno.EDQUOT, 3))
    file.write([b"line 2\n"])
    assert (file.written, len(names(tmp_path))) == (2, 3)
    monkeypatch.setattr(log_file, "_is_out_of_files", lambda folder: True)
    monkeypatch.setattr(os, "write", real_write)
    file.write([b"x" * 99 + b"\n"])
    assert (file.written, len(names(tmp_path))) == (3, 3)
    monkeypatch.setattr(os, "write", full(errno.ENOSPC, 0))
    file.write([b"lost\n"])
    assert (names(tmp_path), file.written, file.dropped["disk"]) == (["app.log"], 3, 1)


def test_a_file_that_cannot_be_rotated_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No line is lost by it; it is told once a minute, and tried again."""
    file, _ = log_at(tmp_path / "app.log", "10 B")
    monkeypatch.setattr(log_file, "_is_out_of_files", lambda folder: True)
    for number in range(3):
        file.write([b"line %d\n" % number, b"more\n"])
        file._rotate_again = 0.0
    file.write([b"a\n"])
    file.write([b"b\n"])
    assert (names(tmp_path), file.written) == (["app.log"], 8)
    assert [message.partition(" cannot be ")[2] for message in caplog.messages] == [
        "rotated or tidied up: No space left on device (it is tried again twice a second)"
    ]


def test_a_limit_of_file_size_begins_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lets the file grow no further, what it took of a line is taken back and written to the next."""
    file, _ = log_at(tmp_path / "app.log", "1 KB")
    real = os.write

    def limited(descriptor: int, data: bytes) -> int:
        room = 20 - os.fstat(descriptor).st_size
        if room <= 0:
            raise OSError(errno.EFBIG, "too big")
        return real(descriptor, data[:room])

    monkeypatch.setattr(os, "write", limited)
    lines = [b'{"n": %d}\n' % number for number in range(7)]
    file.write(lines)
    assert [each.read_bytes() for each in sorted(tmp_path.iterdir())] == [
        b"".join(lines[at : at + 2]) for at in range(0, 7, 2)
    ]
    other, _ = log_at(tmp_path / "other.log")
    other.write(lines)
    assert (other.written, other.dropped["disk"]) == (2, 5)


def test_what_lasts_is_told_seldom(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two lines come within ten seconds, none about the same within a minute, the end is told with the sum."""
    now = [1000.0]
    monkeypatch.setattr(log_outage, "monotonic", lambda: now[0])
    outage = log_outage.FileErrorLog("app.log")
    failure = OSError(errno.EIO, "it broke")
    for at in range(130):
        now[0] = 1000.0 + at
        outage.lost += 1
        outage.lines_lost(failure)
        outage.maintenance_failed(failure)
    outage.recovered()
    outage.recovered()
    outage.maintenance_failed(OSError())
    now[0] += 61
    outage.maintenance_failed(OSError())
    assert [(row.message.split(" ", 4)[4].partition(" (")[0]) for row in caplog.records] == [
        "loses lines: it broke",
        "cannot be rotated or tidied up: it broke",
        "loses lines: it broke",
        "cannot be rotated or tidied up: it broke",
        "is written again, 130 lines were lost",
        "cannot be rotated or tidied up: OSError",
    ]
