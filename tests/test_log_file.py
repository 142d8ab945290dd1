"""The rotating log file: one for each process, nothing lost, nothing touched that is not its own."""

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
from typing import TYPE_CHECKING, Any

import pytest

from fastapi_observe.signals import log_file
from fastapi_observe.signals.log_file import LogFile, Retention, Rotation, parse_retention, parse_rotation

if TYPE_CHECKING:
    from pathlib import Path


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
    while file.tend():
        pass


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
        ("10 files", Retention(10, None)),
        ("1 file", Retention(1, None)),
        ("0 files", Retention(0, None)),
        ("7 days", Retention(None, 604_800)),
        ("90 minutes", Retention(None, 5400)),
    ],
)
def test_retention_is_read(text: str | None, expected: Retention | None) -> None:
    """Numbers of files and ages are understood."""
    assert parse_retention(text) == expected


@pytest.mark.parametrize("text", ["", "many files", "1.5 files", "10", "0 days", "10 MB"])
def test_a_wrong_retention_is_named(text: str) -> None:
    """A wrong value is an error that names it and what is accepted."""
    with pytest.raises(ValueError, match=r"log_retention: got '.*', accepts a number such as '10 files'"):
        parse_retention(text)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("app.log", "app.{pid}.log"),
        ("app-{pid}.log", "app-{pid}.log"),
        ("app", "app.{pid}"),
        ("app.2024.log", "app.2024.{pid}.log"),
    ],
)
def test_each_process_has_its_file(tmp_path: Path, given: str, name: str) -> None:
    """The process id stands in the name, asked for or not; folders are made; others cannot read it."""
    file, faulty = log_at(tmp_path / "logs" / given)
    file.write([b"a\n", b"b\n"])
    tend(file)
    file.close()
    path = tmp_path / "logs" / name.replace("{pid}", str(os.getpid()))
    assert path == file.path
    assert path.read_bytes() == b"a\nb\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    assert not faulty.told


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
    monkeypatch.setattr(log_file, "PIECE", 16)
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
    """The newest rotated files are kept; files of other names stay, however alike."""
    stamp = "20250101T000000.000000"
    foreign = [
        "app.log",
        "app.old.log",
        f"my-app.7.{stamp}.log",
        f"app.7.{stamp}.log.bak",
        f"app.x.{stamp}.log",
        f"app.7.{stamp}.log.gz.old",
        f"other.7.{stamp}.log.gz",
        "app.7.20250101.log",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"foreign")
    for number in range(5):
        path = tmp_path / f"app.7.2025010{number}T000000.000000.log.gz"
        path.write_bytes(gzip.compress(b"old"))
        os.utime(path, (number, number))
    file, faulty = log_at(tmp_path / "app.log", "100 MB", "2 files", compress=True)
    file.write([b"a\n"])
    tend(file)
    assert file.path is not None
    kept = ["app.7.20250103T000000.000000.log.gz", "app.7.20250104T000000.000000.log.gz", file.path.name]
    assert names(tmp_path) == sorted([*foreign, *kept])
    assert not faulty.told


def test_retention_by_age(tmp_path: Path) -> None:
    """Rotated files that are too old are removed."""
    for name, age in (("20250101T000000.000000", 7200), ("20250102T000000.000000", 60)):
        path = tmp_path / f"app.7.{name}.log"
        path.write_bytes(b"old")
        os.utime(path, (time.time() - age,) * 2)
    file, _ = log_at(tmp_path / "app.log", None, "1 hour")
    file.write([b"a\n"])
    tend(file)
    assert file.path is not None
    assert set(names(tmp_path)) == {"app.7.20250102T000000.000000.log", file.path.name}


def test_files_of_dead_processes_are_adopted(tmp_path: Path) -> None:
    """What a dead process left counts as rotated; what a living one holds is left alone."""
    (tmp_path / "app.7.log").write_bytes(b"left behind\n")
    with (tmp_path / "app.8.log").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        file, faulty = log_at(tmp_path / "app.log", compress=True)
        file.write([b"a\n"])
        tend(file)
        assert file.path is not None
        left = set(names(tmp_path)) - {"app.8.log", file.path.name}
    assert len(left) == 1
    adopted = left.pop()
    assert adopted.startswith("app.7.2")
    assert adopted.endswith(".log.gz")
    assert not faulty.told


def test_two_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two apps of one process, or two containers on one volume, write to two files; at last there are no names left."""
    monkeypatch.setattr(log_file, "MOST_NAMES", 2)
    files = [log_at(tmp_path / "app.log") for _ in range(3)]
    for file, _ in files:
        file.write([b"a\n"])
    assert names(tmp_path) == [f"app.{os.getpid()}.log", f"app.{os.getpid()}_1.log"]
    third, faulty = files[2]
    assert third.dropped == 1
    assert isinstance(faulty.told[0][1], FileExistsError)


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another program takes the file, the next look finds out; at rotation as well."""
    monkeypatch.setattr(log_file, "RETRY_AFTER", 0.0)
    file, faulty = log_at(tmp_path / "app.log", "100 B")
    file.write([b"a\n"])
    assert file.path is not None
    file.path.rename(tmp_path / "taken")
    file.write([b"b\n"])
    assert file.path.read_bytes() == b"b\n"
    monkeypatch.setattr(log_file, "RETRY_AFTER", 60.0)
    file.write([b"c\n"])
    file.path.rename(tmp_path / "taken again")
    file.write([b"x" * 100])
    assert file.path.read_bytes() == b"x" * 100
    assert (file.dropped, faulty.told) == (0, [])


def test_a_disk_that_refuses_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that the disk does not take are counted, told of and no reason to raise; later lines are written again."""
    blocked = tmp_path / "blocked"
    file, faulty = log_at(blocked / "app.log")
    blocked.write_bytes(b"")
    file.write([b"a\n", b"b\n"])
    file.write([b"c\n"])
    assert file.dropped == 3
    assert [site for site, _ in faulty.told] == ["logs.file"]
    blocked.unlink()
    monkeypatch.setattr(log_file, "monotonic", lambda: time.monotonic() + 2)
    file.write([b"d\n"])
    assert contents(blocked) == b"d\n"


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is an error that says why and what to do; looking leaves no trace."""
    own = tmp_path / f"own.{os.getpid()}.log"
    own.mkdir()
    (tmp_path / "file").write_bytes(b"")
    wrong = {
        tmp_path: f"{tmp_path} is a folder",
        tmp_path / "own.{pid}.log": f"{own} is a folder",
        tmp_path / "file" / "deep" / "app.log": f"{tmp_path / 'file'} is not a folder",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, reason in wrong.items():
        with pytest.raises(ValueError, match=re.escape(f"log_file: {str(path)!r} cannot be written: ")) as caught:
            log_at(path)
        assert reason in str(caught.value)
        assert str(caught.value).endswith("name a file in a folder that exists and that this process may write to")
    mine = tmp_path / f"app.{os.getpid()}.log"
    mine.write_bytes(b"")
    log_at(tmp_path / "app.log")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path, reason in ((tmp_path / "app.log", str(mine)), (tmp_path / "new" / "x.log", f"in {tmp_path}")):
        with pytest.raises(ValueError, match=re.escape(f"no permission to write {reason};")):
            log_at(path)
    assert names(tmp_path) == sorted([mine.name, own.name, "file"])


def test_a_torn_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of which the disk took only a part is removed again and counted."""
    file, faulty = log_at(tmp_path / "app.log")
    file.write([b"whole\n"])
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    file.write([b"torn\n"])
    monkeypatch.setattr(os, "write", real)
    assert contents(tmp_path) == b"whole\n"
    assert file.dropped == 1
    assert len(faulty.told) == 1


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """A link in the place of the log file is not followed."""
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / f"app.{os.getpid()}.log").symlink_to(tmp_path / "target")
    file, faulty = log_at(tmp_path / "app.log")
    file.write([b"a\n"])
    assert (tmp_path / "target").read_bytes() == b""
    assert isinstance(faulty.told[0][1], OSError)
    assert faulty.told[0][1].errno == errno.ELOOP


def test_tending_fails_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on rotated files that fails is told of and given up until the next rotation."""
    (tmp_path / "app.7.20250101T000000.000000.log").write_bytes(b"old")
    file, faulty = log_at(tmp_path / "app.log", compress=True)
    file.write([b"a\n"])

    def refuse(*args: Any) -> int:
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        tend(file)
    assert isinstance(faulty.told[0][1], PermissionError)
    assert not file.tend()


def test_a_rotation_during_the_work_begins_it_again(tmp_path: Path) -> None:
    """Files rotated while others are compressed get their turn."""
    file, _ = log_at(tmp_path / "app.log", "10 B", compress=True)
    file.write([b"line 1\n"])
    file.write([b"line 2\n"])
    assert file.tend()
    file.write([b"line 3\n"])
    tend(file)
    assert [name.endswith(".gz") for name in names(tmp_path)].count(True) == 2


def test_another_process_may_be_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that another process compresses, adopts or removes at the same time are left to it."""
    rotated = tmp_path / "app.7.20250101T000000.000000.log"
    rotated.write_bytes(b"old")
    with rotated.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(log_file._compress(rotated)) == []
    assert names(tmp_path) == [rotated.name]
    assert list(log_file._compress(tmp_path / "gone.log")) == []
    file, _ = log_at(tmp_path / "app.log", None, "0 files")
    file._adopt(tmp_path / "app.9.log")
    (tmp_path / "app.8.20250101T000000.000000.log").symlink_to(tmp_path / "nowhere")
    file._remove_old(tmp_path)
    assert names(tmp_path) == ["app.8.20250101T000000.000000.log"]


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    """Four processes that rotate files of one pattern at the same time keep every line, whole."""
    script = (
        "import sys; from fastapi_observe.signals.log_file import *\n"
        "file = LogFile(sys.argv[1], parse_rotation('20 KB'), None, True, lambda site, exc: sys.exit(str(exc)))\n"
        "for at in range(50):\n"
        "    file.write([b'%s %d %d\\n' % (sys.argv[2].encode(), at, each) for each in range(100)])\n"
        "    file.tend()\n"
        "while file.tend(): pass\n"
        "sys.exit(file.dropped)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "app.log")]
    running = [subprocess.Popen([*command, str(name)]) for name in range(4)]  # noqa: S603 - our own script
    assert [each.wait(30) for each in running] == [0, 0, 0, 0]
    lines = contents(tmp_path).decode().splitlines()
    assert len(lines) == 4 * 50 * 100
    assert sorted(lines) == sorted(f"{n} {at} {each}" for n in range(4) for at in range(50) for each in range(100))


def test_a_forked_child_opens_its_own(tmp_path: Path) -> None:
    """A child writes to a file of its own, the parent's stays the parent's."""
    script = (
        "import os, sys; from fastapi_observe.signals.log_file import *\n"
        "file = LogFile(sys.argv[1], None, None, True, print)\n"
        "file.write([b'parent\\n'])\n"
        "child = os.fork()\n"
        "file.write([b'after\\n' if child else b'child\\n'])\n"
        "child and os.waitpid(child, 0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "app.log")], timeout=30, check=True)  # noqa: S603
    assert sorted(each.read_bytes() for each in tmp_path.iterdir()) == [b"child\n", b"parent\nafter\n"]


def test_a_file_that_was_renamed_before_the_lock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking another process may rename a file, or put a new one there: neither is touched."""
    locked = log_file._locked

    def renamed_meanwhile(descriptor: int) -> bool:
        for each in tmp_path.glob("app.*.log"):
            each.rename(each.with_suffix(".elsewhere"))
        monkeypatch.setattr(log_file, "_locked", locked)
        return locked(descriptor)

    monkeypatch.setattr(log_file, "_locked", renamed_meanwhile)
    file, _ = log_at(tmp_path / "app.log")
    file.write([b"line\n"])
    assert b"line\n" in {each.read_bytes() for each in tmp_path.glob("app.*.log")}
    other = tmp_path / "app.9.log"
    other.write_bytes(b"new")
    monkeypatch.setattr(log_file, "_stands_at", lambda *_: False)
    file._adopt(other)
    assert other.read_bytes() == b"new"
