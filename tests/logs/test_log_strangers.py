"""Another user of the machine leads no log file of ours anywhere: links, hard links, files and folders of theirs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastapi_observe.logs.file import folder as log_folder
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.file.names import parse_rotation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STRANGER = 54321
LINE = b'{"timestamp":"2026-01-01T00:00:00.000000Z","level":"info"}\n'
STAMP = "20260101T000000.000000"


def log_at(path: Path, rotation: str | None = None, *, compress: bool = False) -> LogFile:
    """Build a log file; a fault of ours fails the test."""

    def told(site: str, exc: BaseException) -> None:
        raise AssertionError(site) from exc

    return LogFile(str(path), parse_rotation(rotation), None, compress, told)


def tend(file: LogFile) -> None:
    """Do all of the work."""
    while file.run_maintenance():
        pass


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file, folder or link a stranger's; who is not root, and cannot, becomes somebody else instead."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    else:
        monkeypatch.setattr(log_folder, "_trusted_owners", lambda: (STRANGER, 0))


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Let modes be what the calls ask for."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a folder that everybody may write in, like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.usefixtures("no_umask")
def test_every_folder_that_is_made_is_closed_to_others(tmp_path: Path) -> None:
    """Each is 0750 and the file 0640 though the umask allows all; one that was there stays as it is."""
    (tmp_path / "there").mkdir(0o755)
    file = log_at(tmp_path / "there" / "a" / "b" / "c" / "app.log", "10 B", compress=True)
    file.write([b"a line\n", b"and one more\n"])
    tend(file)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.rglob("*")}
    files = {name: modes.pop(name) for name in list(modes) if name.startswith("app")}
    assert modes == {"there": 0o755, "a": 0o750, "b": 0o750, "c": 0o750}
    assert len(files) == 2
    assert set(files.values()) == {0o640}


def test_folders_that_are_linked_are_used(tmp_path: Path, shared: Path) -> None:
    """A folder that an administrator has linked holds the files, also by way of `..`, another link, and under /tmp."""
    (tmp_path / "data" / "log").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "relative").symlink_to("../absolute/log")
    (shared / "ours").symlink_to(tmp_path / "data" / "relative")
    file = log_at(shared / "ours" / "app.log", "10 B")
    file.write([b"a line\n", b"and one more\n"])
    assert (file.written, len(list((tmp_path / "data" / "log").iterdir()))) == (2, 2)


def test_a_link_of_a_stranger_is_not_followed(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in /tmp that somebody else has linked is refused at once, with the reason and what to do."""
    (tmp_path / "victim").mkdir()
    (shared / "logs").symlink_to(tmp_path / "victim")
    give_away(shared / "logs", monkeypatch)
    with pytest.raises(ValueError, match=r"app.log' cannot be written: .*'logs' on the way .* name the folder it lea"):
        log_at(shared / "logs" / "app.log")
    (tmp_path / "victim" / "app.log").write_bytes(b"theirs\n")
    with pytest.raises(ValueError, match=r"app.log' cannot be written: 'logs' on the way is a symbolic link in a fold"):
        log_at(shared / "logs" / "app.log")
    assert [each.read_bytes() for each in (tmp_path / "victim").iterdir()] == [b"theirs\n"]


def test_a_link_in_a_folder_without_a_sticky_bit_is_not_followed(tmp_path: Path, shared: Path) -> None:
    """There anybody may replace it, whoever owns it; folders that are none work, as on volumes of containers."""
    shared.chmod(0o777)
    (tmp_path / "data").mkdir()
    (shared / "linked").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match="or chmod o-w the one it is in"):
        log_at(shared / "linked" / "app.log")
    file = log_at(shared / "logs" / "app.log")
    file.write([b"a\n"])
    assert file.written == 1


def test_a_folder_that_becomes_a_link_is_not_followed(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are lost, counted and told of with the file's name; once the folder is back they are written."""
    shared.chmod(0o777)
    (tmp_path / "victim").mkdir()
    file = log_at(shared / "logs" / "app.log")
    file.write([b"a\n"])
    (shared / "logs").rename(shared / "away")
    (shared / "logs").symlink_to(tmp_path / "victim")
    file.write([b"b\n"])
    assert (file.written, file.dropped["disk"], list((tmp_path / "victim").iterdir())) == (1, 1, [])
    (message,) = caplog.messages
    assert message.startswith(f"the log file {shared / 'logs' / 'app.log'} loses lines: 'logs' on the way is a symbo")
    (shared / "logs").unlink()
    (shared / "away").rename(shared / "logs")
    file._try_again = 0.0
    file.write([b"c\n"])
    assert (shared / "logs" / "app.log").read_bytes() == b"a\nc\n"


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    """A circle of links, and a file in the place of a folder, are refused like any wrong path."""
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many") as caught:
        log_folder.open_directory(tmp_path / "round")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        log_folder.open_directory(tmp_path / "missing" / "one")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        log_folder.open_file(tmp_path / "file" / "app.log", os.O_RDWR | os.O_CREAT, make=True)


def test_a_file_of_a_stranger_is_not_written_to(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns it could read and change every line; where others cannot write it is the folder's owner's business."""
    path = shared / "app.log"
    path.write_bytes(b"")
    path.chmod(0o666)
    give_away(path, monkeypatch)
    with pytest.raises(
        ValueError, match=rf"app.log' cannot be written: .* user {path.stat().st_uid}: remove it, chown"
    ):
        log_at(path)
    shared.chmod(0o755)
    give_away(shared, monkeypatch)
    file = log_at(path)
    file.write([b"a\n"])
    assert path.read_bytes() == b"a\n"


def test_a_file_with_another_name_is_not_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hard link would be any file of ours that a stranger wants damaged: refused at once and later."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"ours")
    path = tmp_path / "app.log"
    path.hardlink_to(victim)
    with pytest.raises(ValueError, match=r"app.log' cannot be written: it has another name too \(a hard link\): remov"):
        log_at(path)
    path.unlink()
    file = log_at(path)
    path.hardlink_to(victim)
    file.write([b"a\n"])
    assert (victim.read_bytes(), file.dropped["disk"]) == (b"ours", 1)
    assert "app.log loses lines: it has another name too" in caplog.text


def test_what_is_no_file_is_not_written_to(tmp_path: Path) -> None:
    """A pipe that has come into the file's place is not filled."""
    file = log_at(tmp_path / "app.log")
    os.mkfifo(tmp_path / "app.log")
    file.write([b"a\n"])
    assert (file.written, file.dropped["disk"]) == (0, 1)


def test_nothing_is_compressed_into_a_hard_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file that is compressed into is emptied before: it must be nobody else's; no line is lost."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"ours")
    (tmp_path / "app.log.gz.part").hardlink_to(victim)
    file = log_at(tmp_path / "app.log", "10 B", compress=True)
    file.write([b"a line\n", b"and one more\n"])
    tend(file)
    assert (victim.read_bytes(), file.written) == (b"ours", 2)
    assert "app.log cannot be rotated or tidied up: it has another name too" in caplog.text


def test_rotated_files_of_strangers_are_left_alone(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither compressed nor counted nor in the way of the others."""
    theirs, twice = shared / f"app.{STAMP}.log", shared / f"app.{STAMP[:-1]}1.log"
    for path in (theirs, twice):
        path.write_bytes(b"theirs\n")
    (shared / "more").hardlink_to(twice)
    if os.geteuid() == 0:
        give_away(theirs, monkeypatch)
    else:
        (shared / "even more").hardlink_to(theirs)
    file = log_at(shared / "app.log", "10 B", compress=True)
    file.write([b"a line\n", b"and one more\n"])
    tend(file)
    assert theirs.read_bytes() == twice.read_bytes() == b"theirs\n"
    assert len(list(shared.glob("*.gz"))) == 1


def test_the_files_of_dead_processes_of_strangers_are_left_alone(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a file of a worker that died is adopted only if it is ours."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    theirs, linked = shared / f"app.{child.pid}.log", shared / f"app.{child.pid}_1.log"
    for path in (theirs, linked):
        path.write_bytes(LINE + b'{"torn')
    (shared / "more").hardlink_to(linked)
    file = log_at(shared / "app.{pid}.log")
    file.write([LINE])
    give_away(theirs, monkeypatch)
    tend(file)
    assert theirs.read_bytes() == linked.read_bytes() == LINE + b'{"torn'
