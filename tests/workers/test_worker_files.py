"""Files of workers: cells are shared, ended workers are merged into the archive, damaged files are skipped."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from contextlib import contextmanager, suppress
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from injection import failing, replacing
from tools import limited

from fastapi_observe.workers.files import remove_worker_files
from fastapi_observe.workers.locks import lock_file

pytest.importorskip("fcntl")

from members import NAME, Member
from tools import tmpfs, until, volume

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.workers import archive as worker_archive
from fastapi_observe.workers import files as worker_files
from fastapi_observe.workers import worker as worker_module
from fastapi_observe.workers.archive import Archive
from fastapi_observe.workers.files import HEADER_CELLS, OVERFLOW, ValueFileReader, ValueFileWriter
from fastapi_observe.workers.locks import is_locked
from fastapi_observe.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOAK = "OBSERVE_SOAK" in os.environ
SUM = orjson.dumps(
    {"owner": "0", "name": "n", "kind": "counter", "doc": "", "labels": ["a"], "mode": "sum", "archive_mode": "sum"}
)


def read_files(path: Path) -> ValueFileReader:
    """Return a reader of the files with this prefix, refreshed."""
    reader = ValueFileReader(path, 1)
    reader.refresh()
    return reader


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A refresh reads present values and new series, also those beyond the first 64 KiB."""
    files = ValueFileWriter(tmp_path / "1-1")
    first = files.allocate(SUM, ("x",), [1.0])
    reader = read_files(files.file_prefix)
    assert reader.series == [(0, ("x",), HEADER_CELLS, 1)]
    assert reader.values[HEADER_CELLS] == 1
    first[0] += 2
    for number in range(2000):
        files.allocate(SUM, (str(number),), [float(number)] * 20)
    huge = files.allocate(SUM, ("huge",), [7.0] * 20_000)
    huge[19_999] = 8
    reader.refresh()
    assert reader.values[HEADER_CELLS] == 3
    assert [reader.values[at] for _, labels, at, _ in reader.series[1:-1]] == [float(n) for n in range(2000)]
    assert reader.values[reader.series[-1][2] + 19_999] == 8
    assert not reader.unreadable
    assert files.allocate(SUM, ("x",), [0.0])[0] == 3
    assert files.cell_offset(SUM, ("x",)) == HEADER_CELLS
    files.close()


def test_no_space_for_keys_leaves_no_half_line(tmp_path: Path) -> None:
    """A line that is written in part or not at all is removed, and the next one takes its place."""
    files = ValueFileWriter(tmp_path / "1-1")
    files.allocate(SUM, ("x",), [1.0])
    size = files.file_prefix.with_suffix(".index").stat().st_size
    with limited(resource.RLIMIT_FSIZE, size + 7), pytest.raises(OSError, match="no space"):
        files.allocate(SUM, ("y",), [2.0])
    with limited(resource.RLIMIT_FSIZE, size), pytest.raises(OSError, match="File too large"):
        files.allocate(SUM, ("y",), [2.0])
    files.allocate(SUM, ("z",), [3.0])
    reader = read_files(files.file_prefix)
    assert [(labels, reader.values[at]) for _, labels, at, _ in reader.series] == [(("x",), 1), (("z",), 3)]
    assert not reader.unreadable
    files.close()


def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `MAX_WRITTEN_SERIES` series raise `OSError`, as a full disk does."""
    monkeypatch.setattr(worker_files, "MAX_WRITTEN_SERIES", 3)
    files = ValueFileWriter(tmp_path / "1-1")
    for number in range(3):
        files.allocate(SUM, (str(number),), [1.0])
    with pytest.raises(OSError, match="3 label sets"):
        files.allocate(SUM, ("more",), [1.0])
    files.close()


@pytest.mark.parametrize("failing", ["posix_fallocate", "open"])
def test_files_that_cannot_be_made_leave_nothing(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose files find no space does not join, and leaves neither files nor descriptors."""
    real = getattr(os, failing)

    def fail(*arguments: object, **options: object) -> object:
        if failing == "posix_fallocate" or str(arguments[0]).endswith(".index"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, failing, fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space"):
        Worker(tmp_path / NAME, InternalErrors())
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["lock"]
    # Threads of other tests may have a file open at the moment.
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, 30)


def test_ended_workers_are_merged(tmp_path: Path) -> None:
    """Counts of ended workers stay in the total, in one file. Their gauges are gone."""
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


def test_label_sets_in_the_archive_are_limited(tmp_path: Path) -> None:
    """Ended workers leave a limited number of label sets. The sum is exact, and series that were there are updated."""
    archive = Archive(tmp_path, 5)
    other = orjson.dumps({**orjson.loads(SUM), "name": "free", "kind": "samples"})
    for number in range(4):
        files = ValueFileWriter(tmp_path / f"{number}-1")
        for label in (*range(10 * number, 10 * number + 4), 0):
            files.allocate(SUM, (str(label),), [0.0])[0] += 1
            files.allocate(other, ("free", "a", str(label)), [0.0])[0] += 1
        archive.merge([read_files(files.file_prefix)], frozenset())
        files.close()
    kept: dict[str, dict[str, float]] = {"n": {}, "free": {}}
    for number, labels, at, _ in archive.reader.series:
        kept[archive.reader.families[number]["name"]][labels[-1]] = archive.reader.values[at]
    assert kept["n"] == {"0": 5, "1": 1, "2": 1, "3": 1, "10": 1, OVERFLOW: 11}
    assert len(kept["free"]) == 16  # samples of other collectors have no limit


def test_an_interrupted_merge_counts_once(tmp_path: Path) -> None:
    """A worker killed after it has replaced the archive, and before it has removed the files, counts nothing twice."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    with failing(remove_worker_files, error=OSError("killed")):
        first = Member(tmp_path)
        assert first.samples()["jobs_total"] == {(): 3}
        assert dead.worker.file_prefix.with_suffix(".index").exists()
        assert first.samples()["jobs_total"] == {(): 3}
        first.die()
    second = Member(tmp_path)
    assert second.samples()["jobs_total"] == {(): 3}
    assert not dead.worker.file_prefix.with_suffix(".index").exists()
    second.leave()


def test_no_space_for_the_archive(tmp_path: Path) -> None:
    """A merge that finds no space changes nothing: the files of ended workers are read as before."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    with failing(Path.replace, error=OSError(errno.ENOSPC, "full")):
        assert member.samples()["jobs_total"] == {(): 3}
        assert member.samples()["jobs_total"] == {(): 3}
    assert member.samples()["jobs_total"] == {(): 3}
    assert not dead.worker.file_prefix.with_suffix(".index").exists()
    member.leave()


def test_a_locked_directory_is_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another worker holds the lock nothing is merged and everything is exposed; no worker joins meanwhile."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    member.metrics.counter("jobs_total", "Jobs.").inc()
    monkeypatch.setattr(worker_module, "JOIN_TIMEOUT", 0.02)
    with failing(lock_file, error=BlockingIOError()):
        assert member.samples()["jobs_total"] == {(): 4}
        assert dead.worker.file_prefix.with_suffix(".index").exists()
        with pytest.raises(OSError, match="too long"):
            Worker(tmp_path / NAME, InternalErrors())
        member.leave()
    after = Member(tmp_path)
    assert after.samples()["jobs_total"] == {(): 4}
    after.leave()


def test_an_archive_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    """Files that disappear while the archive changes have been merged: they are not counted as unreadable."""
    dead = Member(tmp_path)
    dead.metrics.counter("jobs_total", "Jobs.").inc(3)
    dead.die()
    member = Member(tmp_path)
    other = Member(tmp_path)

    def refresh(original: Callable[[ValueFileReader], None], reader: ValueFileReader) -> None:
        if not reader.own:
            raise FileNotFoundError
        original(reader)

    with replacing(Archive.changed, lambda *_: True):
        assert member.samples()["jobs_total"] == {(): 3}
    with replacing(Archive.changed, lambda *_: True), replacing(ValueFileReader.refresh, refresh):
        assert member.samples()["jobs_total"] == {(): 3}
        assert not member.worker.unreadable
    other.leave()
    assert not is_locked(tmp_path / "missing.lock")
    member.leave()


def test_an_archive_that_is_a_symbolic_link_counts_as_empty(tmp_path: Path) -> None:
    """The link is not followed, and the archive counts as unreadable."""
    (tmp_path / "elsewhere").write_bytes(b"{}\n")
    (tmp_path / "archive").symlink_to(tmp_path / "elsewhere")
    archive = Archive(tmp_path)
    archive.read()
    assert archive.reader.unreadable
    assert archive.reader.series == []


def test_a_worker_whose_lock_cannot_be_opened_counts_as_live(tmp_path: Path) -> None:
    """Otherwise the files of a live worker would be merged, and counted twice."""
    ended = Member(tmp_path)
    ended.metrics.counter("jobs_total", "Jobs.").inc(2)
    ended.die()
    other = Member(tmp_path)
    lock = ended.worker.file_prefix.with_suffix(".lock")
    lock.unlink()
    lock.symlink_to(tmp_path)
    assert other.samples()["fastapi_observe_workers"] == {(): 2}
    assert other.samples()["jobs_total"] == {(): 2}
    assert ended.worker.file_prefix.with_suffix(".index").exists()
    other.leave()


def test_new_series_have_values(tmp_path: Path) -> None:
    """A thread that reads the series of a worker while another refreshes them finds a value for each."""
    reader = ValueFileReader(tmp_path / "1-1", 1)
    reader.parse_index(b'[0,{"name":"a"}]\n[0,["x"],8,2]\n', 10)
    assert reader.series == []
    reader.set_values(bytes(80))
    assert reader.series == [(0, ("x",), 8, 2)]
    assert len(reader.values) == 10


def test_merge_functions() -> None:
    """Two ended workers are merged by the mode of the family."""
    archive = Archive(Path("nowhere"))
    assert not archive.changed()
    merge = worker_archive.MERGE_FUNCTIONS
    assert merge["sum"]([1.0, 2.0], [3.0, 4.0]) == [4.0, 6.0]
    assert merge["max"]([1.0, 1.0], [3.0, 1.0]) == [3.0, 1.0]
    assert merge["max"]([-1.0, 1.0], [3.0, 0.0]) == [-1.0, 1.0]
    assert merge["min"]([1.0, 1.0], [3.0, 1.0]) == [1.0, 1.0]
    assert merge["min"]([1.0, 1.0], [-3.0, 0.0]) == [1.0, 1.0]
    assert merge["latest"]([1.0, 5.0], [3.0, 4.0]) == [1.0, 5.0]


@given(st.data())
@settings(max_examples=volume(60))
def test_damage_spoils_no_scrape(data: st.DataObject) -> None:
    """Whatever is cut off or overwritten in the files of other workers, a scrape has the own values and is text."""
    with TemporaryDirectory() as name:
        root = Path(name)
        dead = Member(root)
        dead.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc(3)
        dead.metrics.histogram("seconds", "Time.").observe(0.2)
        dead.die()
        if data.draw(st.booleans()):
            Member(root).leave()
        if data.draw(st.booleans()):
            merging = Member(root)
            merging.samples()
            merging.die()
        files = (
            sorted(
                path
                for path in (root / NAME).glob("*")
                if path.suffix in {".index", ".values"} or path.name == "archive"
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
        assert not member.internal_errors.counts.keys() - {"workers.mismatch"}
        member.leave()


def test_unreadable_files_are_counted_once(tmp_path: Path) -> None:
    """An empty value file, keys that are not JSON and a damaged archive are counted, and the rest is exposed."""
    first = Member(tmp_path)
    first.metrics.counter("jobs_total", "Jobs.").inc(3)
    first.die()
    os.truncate(first.worker.file_prefix.with_suffix(".values"), 0)
    second = Member(tmp_path)
    second.metrics.counter("jobs_total", "Jobs.").inc(4)
    with second.worker.file_prefix.with_suffix(".index").open("ab") as file:
        file.write(b"nonsense\n[7,7,7,7]\n[3,[],8,1]\n")
    second.samples()
    samples = second.samples()
    assert samples["jobs_total"] == {(): 4}
    assert samples["fastapi_observe_worker_files_unreadable_total"] == {(): 2}
    (tmp_path / NAME / "archive").write_bytes(b'{"crc":1,"keys":0,"merged":[]}\nx')
    second.samples()
    assert second.samples()["fastapi_observe_worker_files_unreadable_total"] == {(): 3}
    second.leave()


def test_values_that_end_too_early_count_as_nothing(tmp_path: Path) -> None:
    """Values beyond the end of a file that was truncated count as 0."""
    files = ValueFileWriter(tmp_path / "1-1")
    files.allocate(SUM, ("x",), [1.0])
    reader = read_files(files.file_prefix)
    os.truncate(files.file_prefix.with_suffix(".values"), 8)
    reader.refresh()
    assert reader.unreadable
    assert reader.values[HEADER_CELLS] == 0
    os.truncate(files.file_prefix.with_suffix(".values"), 0)
    assert reader.reply_count() == 0
    files.close()


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_non_finite_numbers_are_merged(value: float, tmp_path: Path) -> None:
    """NaN and infinities pass through the files and the archive."""
    for _ in range(2):
        member = Member(tmp_path)
        if _ == 0:
            member.metrics.counter("odd_total", "Odd.").cells[0] = value
        found = member.samples()["odd_total"][()]
        assert found == value or (found != found and value != value)  # noqa: PLR0124 - NaN
        member.die()


@contextmanager
def retrying(member: Member) -> Iterator[None]:
    """Look for space all the time while the block runs, as a worker does every two seconds."""
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


def test_lack_of_space_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose new series find no space logs the reason and what to do, but not at each attempt."""
    member = Member(tmp_path)

    def full(*_: object) -> list[float]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level("WARNING", "fastapi_observe"), replacing(ValueFileWriter.allocate, full):
        member.metrics.counter("jobs_total", "Jobs.").inc()
        until(lambda: "No space left on device. Each /metrics reports the rest for one worker only." in caplog.text)
        assert "set multiprocess_directory to another directory" in caplog.text
        assert member.samples()["jobs_total"] == {(): 1}
        time.sleep(worker_module.SPACE_RETRY_INTERVAL + 2 * worker_module.WATCH_INTERVAL)
    assert caplog.text.count("share only a part of their metrics") == 1
    member.leave()


def test_a_full_disk_is_no_end(tmp_path: Path) -> None:
    """On a full file system nothing is lost: the worker exposes it, and shares it when there is space again."""
    with tmpfs(tmp_path / "small", "size=256k,mode=700") as place:
        member = Member(place, max_values_per_label=1500)
        ballast = place / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            for _ in range(100):
                file.write(bytes(4096))
                file.flush()
        counter = member.metrics.counter("jobs_total", "Jobs.", ["number"])
        for number in range(1500):
            counter.labels(number).inc(number)
        with retrying(member):
            for _ in range(3):
                samples = member.samples()
                assert len(samples["jobs_total"]) == 1500
                assert sum(samples["jobs_total"].values()) == sum(range(1500))
                assert samples["fastapi_observe_metrics_degraded"] == {(): 1}
        shared = member.metrics.sharing.read()
        assert shared is not None
        assert shared.local_only
        ballast.unlink()
        for number in range(1500):
            counter.labels(number).inc()
        after = member.samples()
        assert sum(after["jobs_total"].values()) == sum(range(1500)) + 1500
        member.leave()
