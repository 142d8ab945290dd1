"""The files of workers: shared cells, dead workers folded, damage left out."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from contextlib import contextmanager, suppress
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fcntl")

from members import NAME, Member
from tools import until, volume

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.budget import OVERFLOW
from fastapi_observe.workers import archive as worker_archive
from fastapi_observe.workers import files as worker_files
from fastapi_observe.workers import standing
from fastapi_observe.workers.archive import Archive
from fastapi_observe.workers.directory import is_locked
from fastapi_observe.workers.files import HEADER, ValueFileReader, ValueFileWriter
from fastapi_observe.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

SOAK = "OBSERVE_SOAK" in os.environ
SUM = orjson.dumps(
    {"scope": "0", "name": "n", "kind": "counter", "doc": "", "labels": ["a"], "mode": "sum", "fold": "sum"}
)


def _reading(path: Path) -> ValueFileReader:
    reading = ValueFileReader(path, 1)
    reading.refresh()
    return reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Records are read as they are now, those made since the last time too, beyond the first 64 KiB too."""
    files = ValueFileWriter(tmp_path / "1-1")
    first = files.allocate(SUM, ("x",), [1.0])
    reading = _reading(files.stem)
    assert reading.series == [(0, ("x",), HEADER, 1)]
    assert reading.values[HEADER] == 1
    first[0] += 2
    for number in range(2000):
        files.allocate(SUM, (str(number),), [float(number)] * 20)
    huge = files.allocate(SUM, ("huge",), [7.0] * 20_000)
    huge[19_999] = 8
    reading.refresh()
    assert reading.values[HEADER] == 3
    assert [reading.values[at] for _, labels, at, _ in reading.series[1:-1]] == [float(n) for n in range(2000)]
    assert reading.values[reading.series[-1][2] + 19_999] == 8
    assert not reading.unreadable
    assert files.allocate(SUM, ("x",), [0.0])[0] == 3
    assert files.cell_offset(SUM, ("x",)) == HEADER
    files.close()


def test_no_space_for_keys_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that the disk takes in part or not at all is taken back, and its place used by the next."""
    files = ValueFileWriter(tmp_path / "1-1")
    files.allocate(SUM, ("x",), [1.0])
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        with pytest.raises(OSError, match="no space"):
            files.allocate(SUM, ("y",), [2.0])
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            files.allocate(SUM, ("y",), [2.0])
    files.allocate(SUM, ("z",), [3.0])
    reading = _reading(files.stem)
    assert [(labels, reading.values[at]) for _, labels, at, _ in reading.series] == [(("x",), 1), (("z",), 3)]
    assert not reading.unreadable
    files.close()


def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label sets that come and go find an end before the memory does."""
    monkeypatch.setattr(worker_files, "MAX_RECORDS", 3)
    files = ValueFileWriter(tmp_path / "1-1")
    for number in range(3):
        files.allocate(SUM, (str(number),), [1.0])
    with pytest.raises(OSError, match="3 label sets"):
        files.allocate(SUM, ("more",), [1.0])
    files.close()


@pytest.mark.parametrize("failing", ["posix_fallocate", "open"])
def test_files_that_cannot_be_made_leave_nothing(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no space for a worker's files it does not join, and none of them stays, nor a descriptor."""
    real = getattr(os, failing)

    def fail(*arguments: object, **options: object) -> object:
        if failing == "posix_fallocate" or str(arguments[0]).endswith(".keys"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, failing, fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space"):
        Worker(tmp_path / NAME, InternalErrors())
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["lock"]
    # Threads of other tests may have something open for a moment.
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, 10)


def test_the_dead_are_folded(tmp_path: Path) -> None:
    """Whatever ended workers had counted stays in the total, in one file; their gauges are gone."""
    kills = 200 if SOAK else 30
    total = 0
    for number in range(kills):
        member = Member(tmp_path)
        member.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc(number)
        member.metrics.histogram("seconds", "Time.", buckets=[1.0]).observe(number)
        member.metrics.gauge("level", "Level.").set(5)
        total += number
        samples = member.samples()
        assert samples["jobs_total"] == {(("kind", "a"),): total}
        assert samples["seconds_count"] == {(): number + 1}
        assert samples["seconds_sum"] == {(): total}
        assert samples["seconds_bucket"] == {(("le", "1.0"),): min(2, number + 1), (("le", "+Inf"),): number + 1}
        assert samples["level"] == {(): 5}
        member.die()
    last = Member(tmp_path)
    assert last.samples()["jobs_total"] == {(("kind", "a"),): total}
    assert "level" not in last.samples()
    assert last.samples()["fastapi_observe_worker_files_unreadable_total"] == {(): 0}
    assert len(list((tmp_path / NAME).iterdir())) <= 7
    assert sum(path.stat().st_size for path in (tmp_path / NAME).iterdir()) < 300_000
    last.leave()
    assert not (tmp_path / NAME).exists()


def test_label_sets_of_the_dead_are_bounded(tmp_path: Path) -> None:
    """Workers that end leave a bounded number of label sets; the sum stays right, and what was there goes on."""
    archive = Archive(tmp_path, 5)
    other = orjson.dumps({**orjson.loads(SUM), "name": "free", "kind": "samples"})
    for number in range(4):
        files = ValueFileWriter(tmp_path / f"{number}-1")
        for label in (*range(10 * number, 10 * number + 4), 0):
            files.allocate(SUM, (str(label),), [0.0])[0] += 1
            files.allocate(other, ("free", "a", str(label)), [0.0])[0] += 1
        archive.merge([_reading(files.stem)], frozenset())
        files.close()
    kept: dict[str, dict[str, float]] = {"n": {}, "free": {}}
    for number, labels, at, _ in archive.reading.series:
        kept[archive.reading.families[number]["name"]][labels[-1]] = archive.reading.values[at]
    assert kept["n"] == {"0": 5, "1": 1, "2": 1, "3": 1, "10": 1, OVERFLOW: 11}
    assert OVERFLOW == worker_archive.OVERFLOW
    assert len(kept["free"]) == 16  # those are no label sets of ours


def test_a_fold_that_was_broken_off_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the new archive and the removal of what it holds: the next one counts nothing twice."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_remove_files", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        first = Member(tmp_path)
        assert first.samples()["jobs_total"] == {(): 3}
        assert dead.worker.file_prefix.with_suffix(".keys").exists()
        assert first.samples()["jobs_total"] == {(): 3}
        first.die()
    second = Member(tmp_path)
    assert second.samples()["jobs_total"] == {(): 3}
    assert not dead.worker.file_prefix.with_suffix(".keys").exists()
    second.leave()


def test_no_space_for_the_archive_leaves_the_dead_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold that finds no space changes nothing: the files of the dead count as before."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert member.samples()["jobs_total"] == {(): 3}
    assert member.samples()["jobs_total"] == {(): 3}
    monkeypatch.undo()
    assert member.samples()["jobs_total"] == {(): 3}
    assert not dead.worker.file_prefix.with_suffix(".keys").exists()
    member.leave()


def test_a_busy_directory_is_folded_by_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another worker holds the lock nothing is folded, and everything is shown; at the end it is left behind."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    member.metrics.counter("jobs_total", "Jobs.").inc()

    def refuse(_: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(standing, "lock_file", refuse)
    monkeypatch.setattr(standing, "JOIN_TIMEOUT", 0.02)
    assert member.samples()["jobs_total"] == {(): 4}
    assert dead.worker.file_prefix.with_suffix(".keys").exists()
    with pytest.raises(OSError, match="does not go on"):
        Worker(tmp_path / NAME, InternalErrors())
    member.leave()
    monkeypatch.undo()
    after = Member(tmp_path)
    assert after.samples()["jobs_total"] == {(): 4}
    after.leave()


def test_an_archive_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that go while others fold are looked for again; one that is half gone is counted as unreadable."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "changed", lambda _: True)
        assert member.samples()["jobs_total"] == {(): 3}
        patch.setattr(ValueFileReader, "update_level", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
        member.worker._refresh()
        assert member.worker._readings == {}
        assert not member.worker.unreadable
    with monkeypatch.context() as patch:
        patch.setattr(worker_archive, "_identity", lambda _: (1, 1))
        (tmp_path / NAME / "archive").rename(tmp_path / "kept")
        archive = Archive(tmp_path / NAME)
        archive.read()
        assert not archive.reading.unreadable
        (tmp_path / "kept").rename(tmp_path / NAME / "archive")
    assert member.samples()["jobs_total"] == {(): 3}
    assert not is_locked(tmp_path / "missing.lock")
    member.leave()


def test_gauges_fold_as_they_say() -> None:
    """What is left of two ended workers, by mode of the family."""
    archive = Archive(Path("nowhere"))
    assert not archive.changed()
    folds = worker_archive.MERGE_FUNCTIONS
    assert folds["sum"]([1.0, 2.0], [3.0, 4.0]) == [4.0, 6.0]
    assert folds["max"]([1.0, 1.0], [3.0, 1.0]) == [3.0, 1.0]
    assert folds["max"]([-1.0, 1.0], [3.0, 0.0]) == [-1.0, 1.0]
    assert folds["min"]([1.0, 1.0], [3.0, 1.0]) == [1.0, 1.0]
    assert folds["min"]([1.0, 1.0], [-3.0, 0.0]) == [1.0, 1.0]
    assert folds["latest"]([1.0, 5.0], [3.0, 4.0]) == [1.0, 5.0]


@given(st.data())
@settings(max_examples=volume(60))
def test_damage_spoils_no_scrape(data: st.DataObject) -> None:
    """Whatever is cut off or overwritten in files of others, a scrape shows our own numbers and is text."""
    with TemporaryDirectory() as name:
        root = Path(name)
        dead = Member(root)
        dead.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc(3)
        dead.metrics.histogram("seconds", "Time.").observe(0.2)
        dead.die()
        if data.draw(st.booleans()):
            Member(root).leave()
        if data.draw(st.booleans()):
            folding = Member(root)
            folding.samples()
            folding.die()
        files = (
            sorted(
                path
                for path in (root / NAME).glob("*")
                if path.suffix in {".keys", ".values"} or path.name == "archive"
            )
            if (root / NAME).exists()
            else []
        )
        for path in files:
            content = bytearray(path.read_bytes())
            how = data.draw(st.sampled_from(["keep", "cut", "empty", "garble", "remove", "link"]))
            if how == "cut":
                path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
            elif how == "empty":
                path.write_bytes(b"")
            elif how == "garble" and content:
                at = data.draw(st.integers(0, min(len(content), 2000) - 1))
                content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
                path.write_bytes(content)
            elif how == "remove":
                path.unlink()
            elif how == "link":
                path.unlink()
                path.symlink_to("/etc/passwd")
        member = Member(root)
        member.metrics.counter("own_total", "Own.").inc(2)
        for _ in range(2):
            assert member.samples()["own_total"] == {(): 2}
        assert not member.faults.counts.keys() - {"workers.shape"}
        member.leave()


def test_unreadable_files_are_counted_once(tmp_path: Path) -> None:
    """An empty file of values, keys that are no JSON, a damaged archive: each is counted, what is whole is shown."""
    first = Member(tmp_path)
    first.metrics.counter("jobs_total", "Jobs.").inc(3)
    first.die()
    os.truncate(first.worker.file_prefix.with_suffix(".values"), 0)
    second = Member(tmp_path)
    second.metrics.counter("jobs_total", "Jobs.").inc(4)
    with second.worker.file_prefix.with_suffix(".keys").open("ab") as file:
        file.write(b"nonsense\n[7,7,7,7]\n[3,[],8,1]\n")
    second.samples()
    samples = second.samples()
    assert samples["jobs_total"] == {(): 4}
    assert samples["fastapi_observe_worker_files_unreadable_total"] == {(): 2}
    (tmp_path / NAME / "archive").write_bytes(b'{"crc":1,"keys":0,"folded":[]}\nx')
    second.samples()
    assert second.samples()["fastapi_observe_worker_files_unreadable_total"] == {(): 3}
    second.leave()


def test_values_that_end_too_early_count_as_nothing(tmp_path: Path) -> None:
    """A file of values that became shorter since its keys were read counts as 0 where it ends."""
    files = ValueFileWriter(tmp_path / "1-1")
    files.allocate(SUM, ("x",), [1.0])
    reading = _reading(files.stem)
    os.truncate(files.stem.with_suffix(".values"), 8)
    reading.refresh()
    assert reading.unreadable
    assert reading.values[HEADER] == 0
    os.truncate(files.stem.with_suffix(".values"), 0)
    assert reading.answers() == 0
    files.close()


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_numbers_that_are_none_are_folded(value: float, tmp_path: Path) -> None:
    """NaN and infinities pass through the files and the archive."""
    for _ in range(2):
        member = Member(tmp_path)
        if _ == 0:
            member.metrics.counter("odd_total", "Odd.").cells[0] = value
        found = member.samples()["odd_total"][()]
        assert found == value or (found != found and value != value)  # noqa: PLR0124 - NaN
        member.die()


@contextmanager
def trying_again(member: Member) -> Iterator[None]:
    """Try all the time to find space for what has none, as a worker does every other second."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            member.worker.publish_values(exemplars=False)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_full_disk_is_no_end(tmp_path: Path) -> None:
    """On a full file system of 256 KiB no number is lost: its own worker shows it, all do once there is space."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:  # noqa: S603 - our own words
        pytest.skip("only root may mount a small file system")
    try:
        member = Member(place, max_values_per_label=1500)
        ballast = place / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            for _ in range(100):
                file.write(bytes(4096))
                file.flush()
        counter = member.metrics.counter("jobs_total", "Jobs.", ["number"])
        for number in range(1500):
            counter.labels(number).inc(number)
        with trying_again(member):
            for _ in range(3):
                samples = member.samples()
                assert len(samples["jobs_total"]) == 1500
                assert sum(samples["jobs_total"].values()) == sum(range(1500))
                assert samples["fastapi_observe_metrics_degraded"] == {(): 1}
        assert member.metrics.sharing._view is not None
        assert member.metrics.sharing._view.cells.local_only
        ballast.unlink()
        for number in range(1500):
            counter.labels(number).inc()
        after = member.samples()
        assert sum(after["jobs_total"].values()) == sum(range(1500)) + 1500
        member.leave()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)  # noqa: S603, S607 - as above
