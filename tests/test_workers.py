"""Finding the other workers, meeting them in a safe place, and showing one total."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing.process
import os
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import prometheus_client
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, values
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.testclient import TestClient

pytest.importorskip("fcntl")

from members import NAME, Member
from worker_app import wired

from fastapi_observe.records.faults import Faults
from fastapi_observe.runtime import worker_meeting, worker_place, workers
from fastapi_observe.runtime.worker_files import Reading
from fastapi_observe.runtime.worker_place import UnsafeDirectoryError, open_root, supervisor, sweep
from fastapi_observe.runtime.workers import Workers
from fastapi_observe.settings import ObserveSettings
from fastapi_observe.signals.cells_merged import MergedSeries
from fastapi_observe.signals.cells_readers import mode_of
from fastapi_observe.signals.cells_samples import Samples, describe
from fastapi_observe.signals.metrics import MetricsService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

HERE = Path(__file__).parent
SOAK = "OBSERVE_SOAK" in os.environ


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like a worker of gunicorn."""
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27.0.1")


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Callable[..., Member]]:
    """Make members that leave after the test."""
    made: list[Member] = []

    def make(**settings: Any) -> Member:
        made.append(Member(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        if one.metrics.sharing._view is not None and one.worker._thread is not None and one.worker._thread.is_alive():
            one.leave()


def _app() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    return app


# Who supervises us


def test_a_single_process_is_alone() -> None:
    """Neither forked, nor a child of multiprocessing, nor of gunicorn: there are no others."""
    assert supervisor(os.getpid()) is None


def test_the_supervisor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork it is who called `install`; else multiprocessing's parent; else gunicorn's master."""
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27.0.1")
    assert supervisor(os.getpid()) == os.getppid()
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: SimpleNamespace(pid=7))
    assert supervisor(os.getpid()) == 7
    assert supervisor(1) == 1
    monkeypatch.setenv("SERVER_SOFTWARE", "other/1")
    monkeypatch.delitem(sys.modules, "multiprocessing.process")
    assert supervisor(os.getpid()) is None


def test_a_single_process_keeps_its_values_in_memory(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Without others nothing is made, and nothing is said about workers."""
    app = _app()
    seen = observed(app, workers_directory=str(tmp_path))
    wired(seen.observe)
    with TestClient(app) as client:
        client.get("/items/1")
        assert type(seen.observe.metrics._active.cells) is list
        assert "fastapi_observe_workers" not in seen.text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("gunicorn")
def test_workers_off_counts_each_process_for_itself(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """`workers="off"` and `metrics=False` share nothing."""
    for options in ({"workers": "off"}, {"metrics": False}):
        app = _app()
        seen = observed(app, workers_directory=str(tmp_path), **options)
        wired(seen.observe)
        with TestClient(app) as client:
            client.get("/items/1")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("gunicorn")
def test_a_worker_shares_and_leaves(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """In a worker the values stand in files while the app runs; the last one out removes them; then again."""
    app = _app()
    seen = observed(app, workers_directory=str(tmp_path))
    seen.observe.metrics.business.user_registered()
    wired(seen.observe)
    for expected in (1, 0):
        with TestClient(app) as client:
            (directory,) = tmp_path.glob("fastapi-observe-*/*")
            assert directory.stat().st_mode & 0o777 == 0o700
            for _ in range(3):
                client.get("/items/1")
            seen.observe.metrics.counter("late_total", "Late.").inc()
            assert seen.total("http_requests_total") == 3
            assert seen.total("user_registrations_total") == expected
            assert seen.total("late_total") == 1
            assert seen.sample("fastapi_observe_workers") == 1
            assert seen.sample("http_requests_in_progress") == 0
            text = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
            assert text.endswith("# EOF\n")
            assert "trace_id=" in text
        assert not list(tmp_path.glob("fastapi-observe-*/*"))
        assert type(seen.observe.metrics._active.cells) is list
    assert values.ValueClass is values.MutexValue
    assert "register" not in vars(prometheus_client.REGISTRY)


@pytest.mark.usefixtures("gunicorn")
def test_two_apps_of_one_worker_are_told_apart(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Each app shows its own requests; both show the metrics of the default registry; one worker stands for both."""
    counter = prometheus_client.Counter("shared_total", "Shared.")
    try:
        apps = [_app(), _app()]
        seen = [observed(app, workers_directory=str(tmp_path)) for app in apps]
        for one in seen:
            wired(one.observe).start()
        counter.inc(5)
        for app, one, times in zip(apps, seen, (2, 3), strict=True):
            client = TestClient(app)
            for _ in range(times):
                client.get("/items/1")
            assert one.total("http_requests_total") == times
            assert one.total("shared_total") == 5
        assert len(list(tmp_path.glob("fastapi-observe-*/*/*.lock"))) == 1
        seen[0].observe.close()
        assert seen[1].total("shared_total") == 5
    finally:
        prometheus_client.REGISTRY.unregister(counter)


# A safe place


def _hostile(kind: str, root: Path) -> None:
    ours = root / f"fastapi-observe-{os.geteuid()}"
    if kind == "symlink":
        (root / "elsewhere").mkdir()
        ours.symlink_to(root / "elsewhere")
    elif kind == "file":
        ours.touch()
    else:
        ours.mkdir(0o700)
        if kind == "writable":
            ours.chmod(0o777)
        elif os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        else:
            os.chown(ours, 12345, -1)


@pytest.mark.usefixtures("gunicorn")
@pytest.mark.parametrize("kind", ["symlink", "file", "writable", "foreign"])
def test_a_hostile_directory_is_refused(
    kind: str, observed: Callable[..., Seen], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that somebody else made or may write in is not used: counted apart, shown, said once."""
    _hostile(kind, tmp_path)
    app = _app()
    seen = observed(app, workers_directory=str(tmp_path), capture_logging=False)
    wired(seen.observe)
    with caplog.at_level(logging.WARNING, "fastapi_observe"), TestClient(app) as client:
        client.get("/items/1")
        client.get("/items/1")
        assert seen.sample("fastapi_observe_metrics_degraded") == 1
        assert seen.total("http_requests_total") == 2
    assert len([record for record in caplog.records if "counted apart" in record.message]) == 1
    assert not seen.observe.faults.counts


def test_the_first_place_that_can_be_written_in_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shared memory it is the temporary directory; a hostile directory in the first place is an error."""
    monkeypatch.setattr(worker_place, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert open_root(None).parent == tmp_path
    monkeypatch.setattr(worker_place, "SHARED_MEMORY", tmp_path)
    next(tmp_path.glob("fastapi-observe-*")).chmod(0o770)
    with pytest.raises(UnsafeDirectoryError):
        open_root(None)
    with pytest.raises(FileNotFoundError):
        open_root(str(tmp_path / "missing"))


@pytest.mark.usefixtures("gunicorn")
@pytest.mark.parametrize("missing", ["posix_fallocate", "mkfifo"])
def test_a_system_without_the_calls_says_so(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the calls are missing (Windows, macOS) one line says that workers are counted apart."""
    monkeypatch.delattr(os, missing)
    faults = Faults()
    settings = ObserveSettings(workers_directory=str(tmp_path))
    metrics = MetricsService(settings, faults)
    one = Workers(settings, faults, metrics.sharing)
    with caplog.at_level(logging.WARNING, "fastapi_observe"):
        one.start()
        one.start()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "worker processes are counted apart, each /metrics shows one of them"
    ]
    one.stop()


@pytest.mark.usefixtures("gunicorn")
def test_a_fault_of_ours_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else goes wrong while joining does not reach the app."""
    monkeypatch.setattr(workers, "directory_name", lambda _: 1 / 0)
    faults = Faults()
    settings = ObserveSettings(workers_directory=str(tmp_path))
    Workers(settings, faults, MetricsService(settings, faults).sharing).start()
    assert faults.counts == {"workers.start": 1}


def test_directories_of_gone_servers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory goes when its supervisor has and nobody in it lives; one of another namespace after an hour."""
    namespace = worker_place._namespace()
    alive = f"{namespace}-{os.getpid()}-{worker_place._started(os.getpid())}"
    names = {
        "gone": f"{namespace}-4194305-1",
        "reused": f"{namespace}-{os.getpid()}-1",
        "alive": alive,
        "foreign": "1-2-3",
        "foreign old": "1-2-4",
        "held": f"{namespace}-4194305-2",
        "ours": f"{namespace}-4194305-3",
        "no": "something-else",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1-1.lock").touch()
    (tmp_path / f"{namespace}-4194305-9").touch()
    os.utime(tmp_path / names["foreign old"], (1, 1))
    held = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", held, str(tmp_path / names["held"] / "1-1.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    sweep(tmp_path, names["ours"])
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {names[name] for name in ("alive", "foreign", "held", "ours", "no")}
    holder.communicate(b"\n")
    monkeypatch.setattr(worker_place, "remove", lambda _: (_ for _ in ()).throw(OSError("busy")))
    sweep(tmp_path, names["ours"])


def test_where_there_is_no_proc_psutil_knows_when_a_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacOS has no /proc: the start of a process comes from psutil, and there are no namespaces."""
    monkeypatch.setattr(worker_place, "Path", lambda *_: Path("/nowhere/at/all"))
    assert worker_place._started(os.getpid()) > 0
    assert worker_place._started(4194305) == 0
    assert worker_place._namespace() == 0


def test_a_directory_that_was_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the lock of a directory that the last one out removes begins a new one."""
    real = worker_place.lock
    removed: list[int] = []

    def lock_and_lose(descriptor: int) -> None:
        real(descriptor)
        if not removed:
            removed.append(descriptor)
            worker_place.remove(tmp_path / NAME)

    monkeypatch.setattr(worker_meeting, "lock", lock_and_lose)
    one = Member(tmp_path)
    one.metrics.counter("jobs_total", "Jobs.").inc()
    assert one.samples()["jobs_total"] == {(): 1}
    one.leave()


# What is shown


def test_gauges_by_mode(tmp_path: Path, member: Callable[..., Member]) -> None:
    """`sum` adds up those that live, `max` and `min` choose, `pid` shows each with its pid; functions are asked."""
    one = member()
    modes: tuple[Literal["sum", "max", "min", "pid"], ...] = ("sum", "max", "min", "pid")
    for mode in modes:
        one.metrics.gauge(f"{mode}_level", "Level.", ["kind"], mode=mode).labels("a").set(3)
    one.metrics.gauge("asked", "Asked.").set_function(lambda: 7)
    one.metrics.gauge("failing", "Failing.").set_function(lambda: 1 / 0)
    samples = one.samples()
    for mode in ("sum", "max", "min"):
        assert samples[f"{mode}_level"] == {(("kind", "a"),): 3}
    assert samples["pid_level"] == {(("kind", "a"), ("pid", str(os.getpid()))): 3}
    assert samples["asked"] == {(): 7}
    assert one.faults.counts["collect"] >= 1
    gauge = one.metrics.gauge("sum_level", "Level.", ["kind"])
    gauge.remove("a")
    gauge.remove("a")
    assert "sum_level" not in one.samples()
    gauge.labels("a").inc()
    assert one.samples()["sum_level"] == {(("kind", "a"),): 1}
    counter = one.metrics.counter("kept_total", "Kept.", ["kind"])
    counter.labels("a").inc(2)
    counter.remove("a")
    assert one.samples()["kept_total"] == {(("kind", "a"),): 2}


def test_metrics_that_only_others_have_are_shown(tmp_path: Path, member: Callable[..., Member]) -> None:
    """A metric made in a request stands in one worker; the scrape of another shows it all the same."""
    other = Member(tmp_path)
    other.metrics.counter("theirs_total", "Theirs.", ["kind"]).labels('a"b').inc()
    other.metrics.histogram("their_seconds", "Theirs.", buckets=[1.0, 2.0]).observe(1.5)
    other.die()
    samples = member().samples()
    assert samples["theirs_total"] == {(("kind", 'a"b'),): 1}
    assert samples["their_seconds_bucket"][("le", "2.0"),] == 1


def test_a_metric_of_another_shape_is_left_out(tmp_path: Path, member: Callable[..., Member]) -> None:
    """After an update a metric may have other buckets or labels: then ours are shown, and a fault is counted."""
    other = Member(tmp_path)
    other.metrics.histogram("seconds", "Time.", buckets=[1.0]).observe(0.5)
    other.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc()
    other.die()
    one = member()
    one.metrics.histogram("seconds", "Time.", buckets=[2.0]).observe(0.5)
    one.metrics.counter("jobs_total", "Jobs.").inc()
    samples = one.samples()
    assert samples["seconds_count"] == {(): 1}
    assert samples["jobs_total"] == {(): 1}
    one.samples()
    assert one.faults.counts == {"workers.shape": 1}


def test_what_threads_count_while_joining_is_not_lost(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Cells that were remembered before a worker joined are still added up."""
    one = member()
    one.metrics.sharing.unshare()
    counter = one.metrics.counter("jobs_total", "Jobs.")
    before = counter.cells
    counter.inc(2)
    one.metrics.sharing.share(one.worker, "0")
    before[0] += 3
    assert one.samples()["jobs_total"] == {(): 5}
    assert one.samples()["jobs_total"] == {(): 5}


class Reader:
    """A collector of the user's own."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> list[Metric]:
        """Say it, or fail."""
        if not self.families:
            raise RuntimeError
        return self.families


def test_collectors_are_read_for_the_scrape(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Another's collector is shown by pid, what it no longer says is gone; one that raises spoils nothing."""
    registry = CollectorRegistry()
    reader = Reader()
    registry.register(reader)
    prometheus_client.Info("build", "Build.", registry=registry).info({"version": "1"})
    prometheus_client.Enum("state", "State.", states=["on", "off"], registry=registry).state("on")
    one = member(registry=registry)
    level = GaugeMetricFamily("queue_length", "Queue.", labels=["name"])
    level.add_metric(["a"], 4)
    hits = CounterMetricFamily("cache_hits", "Hits.", value=2, created=1.0)
    reader.families = [level, hits]
    pid = ("pid", str(os.getpid()))
    samples = one.samples()
    assert samples["queue_length"] == {(("name", "a"), pid): 4}
    assert samples["cache_hits_total"] == {(pid,): 2}
    assert samples["build_info"] == {(("version", "1"),): 1}
    assert samples["state"] == {(("state", "off"),): 0, (("state", "on"),): 1}
    reader.families = [hits]
    assert "queue_length" not in one.samples()
    reader.families = []
    assert "cache_hits_total" not in one.samples()
    assert one.faults.counts == {"collect": 1}
    assert one.samples()["http_requests_in_progress"] == {(): 0}


def test_the_users_own_directory_is_read(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PROMETHEUS_MULTIPROC_DIR prometheus_client's files are read, in the registry that has such metrics."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=registry)
    counter.inc(2)
    assert member(registry=registry).samples()["theirs_total"] == {(): 2}
    values.ValueClass.close_all_files()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    registry = CollectorRegistry()
    assert "theirs_total" not in member(registry=registry).samples()


def test_how_families_of_readers_are_shown() -> None:
    """Ours are added up, but times and states; what belongs to the process has its pid, the machine's stands once."""
    assert mode_of("fastapi_observe_exported", "counter") == "sum"
    assert mode_of("fastapi_observe_queue_bytes", "gauge") == "sum"
    assert mode_of("fastapi_observe_last_export_success_timestamp_seconds", "gauge") == "max"
    assert mode_of("process_cpu_seconds", "counter") == "pid"
    assert mode_of("cpu_usage_percent", "gauge") == "once"
    assert mode_of("python_info", "gauge") == "once"


def test_the_users_metrics_take_part(tmp_path: Path, member: Callable[..., Member]) -> None:
    """prometheus_client's metrics made before and after, in the registry that is shown; others are left alone."""
    registry = CollectorRegistry()
    before = prometheus_client.Counter("before", "Before.", ["kind"], registry=registry)
    before.labels("a").inc(2, exemplar={"trace_id": "abc"})
    recent = prometheus_client.Gauge("recent", "Recent.", multiprocess_mode="mostrecent", registry=registry)
    recent.set(4)
    asked = prometheus_client.Gauge("asked", "Asked.", multiprocess_mode="max", registry=registry)
    asked.set_function(lambda: 9)
    broken = prometheus_client.Gauge("broken", "Broken.", ["kind"], multiprocess_mode="sum", registry=registry)
    broken.labels("a").set_function(lambda: 1 / 0)
    for round_ in (1, 2):
        one = member(registry=registry)
        after = prometheus_client.Summary(f"after{round_}", "After.", ["kind"], registry=registry)
        after.labels("ä\ud800").observe(1.5)
        plain = prometheus_client.Histogram(f"plain{round_}", "Plain.", buckets=[-1, 1], registry=registry)
        plain.observe(0.5, exemplar={"trace_id": "def"})
        low = prometheus_client.Gauge(f"low{round_}", "Low.", multiprocess_mode="livemin", registry=registry)
        low.set(3)
        other = prometheus_client.Counter("before", "Another's.", registry=None)
        other.inc()
        assert isinstance(other._value, values.MutexValue)
        before.labels("a").inc()
        before.labels("b").inc()
        samples = one.samples()
        assert samples["before_total"] == {(("kind", "a"),): 2 + round_, (("kind", "b"),): round_}
        assert samples[f"after{round_}_sum"] == {(("kind", "ä\\ud800"),): 1.5}
        assert samples[f"after{round_}_count"] == {(("kind", "ä\\ud800"),): 1}
        assert samples[f"plain{round_}_bucket"] == {(("le", "-1.0"),): 0, (("le", "1.0"),): 1, (("le", "+Inf"),): 1}
        assert samples[f"plain{round_}_count"] == {(): 1}
        assert f"plain{round_}_sum" not in samples
        assert samples[f"low{round_}"] == {(): 3}
        assert samples["recent"] == {(): 4}
        assert samples["asked"] == {(): 9}
        assert 'trace_id="def"' in one.text("application/openmetrics-text")
        if round_ == 1:
            registry.unregister(plain)
            registry.register(plain)
            assert one.samples()["plain1_count"] == {(): 1}
            one.die()
            one.metrics.close()
            assert values.ValueClass is values.MutexValue
    del low, plain
    gc.collect()


def test_no_space_for_the_users_metrics(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no space is shown by its own worker, whatever kind of metric it is, and shared later."""
    registry = CollectorRegistry()
    one = member(registry=registry)
    stuck = False
    real = one.worker._own.allocate

    def allocate(*arguments: Any) -> Any:
        if stuck:
            raise OSError(28, "full")
        return real(*arguments)

    monkeypatch.setattr(one.worker._own, "allocate", allocate)
    one.samples()
    stuck = True
    prometheus_client.Counter("theirs", "Theirs.", registry=registry).inc(2, exemplar={"a": "b"})
    one.metrics.gauge("ours", "Ours.", ["kind"]).labels("a").set(3)
    each = one.metrics.gauge("each", "Each.", ["kind"], mode="pid")
    each.labels("a").set(4)
    counter = one.metrics.counter("jobs_total", "Jobs.", ["kind"])
    counter.labels("a").inc(exemplar={"trace_id": "x"})
    histogram = one.metrics.histogram("seconds", "Time.", ["kind"])
    histogram.labels("a").observe(1)
    gone = one.metrics.gauge("gone", "Gone.", ["kind"])
    gone.labels("a").set(1)
    gone.remove("a")
    registry.register(Reader())
    reader = Reader()
    reader.families = [GaugeMetricFamily("read", "Read.", value=5)]
    registry.register(reader)
    for stuck in (True, False):  # noqa: B007 - read by `allocate`
        samples = one.samples()
        assert samples["theirs_total"] == {(): 2}
        assert samples["ours"] == {(("kind", "a"),): 3}
        assert samples["jobs_total"] == {(("kind", "a"),): 1}
        assert samples["seconds_count"] == {(("kind", "a"),): 1}
        assert samples["read"] == {(("pid", str(os.getpid())),): 5}
        assert samples["fastapi_observe_metrics_degraded"] == {(): 1}
        assert "gone" not in samples
        one.text("application/openmetrics-text")
    stuck = True
    histogram.labels("b").observe(1)
    histogram.labels("a").observe(1)
    counter.labels("b").inc()
    one.metrics.gauge("ours", "Ours.", ["kind"]).labels("b").set(3)
    each.labels("b").set(4)
    prometheus_client.Counter("more", "More.", ["kind"], registry=registry).labels("a").inc()
    samples = one.samples()
    assert samples["seconds_count"] == {(("kind", "a"),): 2, (("kind", "b"),): 1}
    assert samples["jobs_total"] == {(("kind", "a"),): 1, (("kind", "b"),): 1}
    assert len(samples["each"]) == 2
    assert samples["more_total"] == {(("kind", "a"),): 1}


def test_exemplars_that_cannot_be_written_are_left_out(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without space for exemplars shows the samples without them; damaged ones likewise."""
    one = member()
    one.metrics.counter("jobs_total", "Jobs.").inc(exemplar={"trace_id": "x"})
    assert 'trace_id="x"' in one.text("application/openmetrics-text")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert 'trace_id="x"' in one.text("application/openmetrics-text")
    assert one.worker.degraded
    with monkeypatch.context() as patch:
        patch.setattr(one.worker, "answer", lambda **_: None)
        path = one.worker.stem.with_suffix(".exemplars")
        for content in (b"", b"[1", b"{}"):
            path.write_bytes(content)
            assert "trace_id" not in one.text("application/openmetrics-text")


@pytest.mark.usefixtures("gunicorn")
def test_a_fork_takes_everything_apart(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """What the child of a fork does first: cells of its own, from zero; prometheus_client as it was; fresh locks."""
    theirs = prometheus_client.Counter("theirs", "Theirs.")
    try:
        seen = [observed(_app(), workers_directory=str(tmp_path)) for _ in range(3)]
        for one in seen[:2]:
            wired(one.observe).start()
        counter = seen[0].observe.metrics.counter("jobs_total", "Jobs.")
        counter.inc(2)
        theirs.inc(3)
        (worker, _) = next(iter(workers.JOINED.values()))
        os.write(worker._ask, worker_meeting.QUIT)
        assert worker._thread is not None
        worker._thread.join()
        workers._after_fork()
        assert not workers.JOINED
        assert counter.cells == [0]
        assert theirs._value.get() == 0
        assert values.ValueClass is values.MutexValue
        counter.inc()
        theirs.inc()
        assert seen[0].total("jobs_total") == 1
        assert seen[0].total("theirs_total") == 1
    finally:
        prometheus_client.REGISTRY.unregister(theirs)


def test_an_answer_that_fails_is_counted(tmp_path: Path, member: Callable[..., Member]) -> None:
    """A fault of ours while a worker reads for a scrape is counted, and the scrape goes on."""
    one = member()
    one.worker.answerers.insert(0, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    assert one.samples()["http_requests_in_progress"] == {(): 0}
    assert one.faults.counts == {"workers.answer": 1}


def test_the_latest_exemplar_counts() -> None:
    """Of two workers' exemplars of a cell the later one is shown."""
    early, late = {0: ({"a": "1"}, 1.0, 5.0)}, {0: ({"a": "2"}, 1.0, 6.0)}
    readings = [Reading(Path(name), 1) for name in "abc"]
    series = MergedSeries("")
    series.refs = [(reading, 8) for reading in readings]
    series.find_exemplars({("a", 8): early, ("b", 8): late, ("c", 8): early})
    assert series.exemplars == late
    samples = Samples(describe("0", "n", "counter", "", "sum"))
    for reading in readings:
        reading.values = memoryview(array("d", [0.0] * 8 + [1.0, 1.0]))
        samples.add(("n_total",), reading, 8)
    (sample,) = samples.metric((), {("a", 8): early, ("b", 8): late, ("c", 8): early}).samples
    assert sample.value == 3
    assert sample.exemplar is not None
    assert sample.exemplar.timestamp == 6


def test_nonsense_in_the_keys_of_others_is_left_out(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Families of no kind, series with other labels or of another size: the rest is shown."""
    dead = Member(tmp_path)
    counter = orjson.dumps({**_COUNTER, "kind": "counter"})
    dead.worker.allocate(orjson.dumps({**_COUNTER, "kind": "nonsense"}), ("a",), [1.0])
    dead.worker.allocate(counter, ("a",), [1.0])
    dead.worker.allocate(counter, ("a", "b"), [1.0])
    dead.worker.allocate(counter, ("c",), [1.0, 2.0])
    dead.worker.allocate(
        orjson.dumps(describe("0/client", "h", "histogram", "", "sum")), ("h_bucket", "le", "x"), [1, 1]
    )
    dead.die()
    one = member()
    samples = one.samples()
    assert samples["odd_total"] == {(("kind", "a"),): 1}
    assert samples["http_requests_in_progress"] == {(): 0}
    assert one.faults.counts.keys() == {"workers.shape", "collect"}


_COUNTER = {
    "scope": "0",
    "name": "odd",
    "doc": "Odd.",
    "labels": ["kind"],
    "bounds": None,
    "mode": "sum",
    "fold": "sum",
}


def test_a_registry_of_another_class_is_read_as_it_is(tmp_path: Path, member: Callable[..., Member]) -> None:
    """In a registry whose class is not prometheus_client's own no values are moved."""

    class Own(CollectorRegistry):
        pass

    registry = Own()
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=registry)
    one = member(registry=registry)
    assert isinstance(counter._value, values.MutexValue)
    assert one.samples()["http_requests_in_progress"] == {(): 0}


def test_without_the_users_directory_nothing_is_read_from_it(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PROMETHEUS_MULTIPROC_DIR set, a registry without prometheus_client's metrics shows none of them."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())  # type: ignore[no-untyped-call]
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=None)
    counter.inc(2)
    one = member()
    assert "theirs_total" not in one.samples()
    one.metrics.sharing.unshare()
    one.metrics.sharing.unshare()
    values.ValueClass.close_all_files()


# Forks and kills: in a process of their own, since this one has threads


def _run(script: str, *arguments: object) -> Any:
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    process = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, HERE / "worker_forks.py", script, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_a_forked_worker_begins_at_zero(tmp_path: Path) -> None:
    """Forked after `install`: what the parent had counted is not counted again in each child; gauges are kept."""
    found = _run("preload", tmp_path)
    assert found == {"ours": 2, "theirs": 2, "gauge": 10, "before": 0}


def test_a_fork_of_a_worker_does_not_write_in_its_files(tmp_path: Path) -> None:
    """A child that a worker forks counts for itself; the lock stays the worker's, and no descriptor is left open."""
    found = _run("fork", tmp_path)
    assert found == {"parent": 1, "child": 5, "open": 0, "joined": 8}


def test_workers_killed_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """Kill -9, again and again: each worker's counts to the last one stay, totals never go back, files stay few."""
    kills = 200 if SOAK else 25
    found = _run("kills", tmp_path, kills)
    assert found["kills"] == kills
    assert found["counted"] <= found["total"] <= found["counted"] + kills
    assert found["backwards"] == 0
    assert found["exact"] == found["known"]
    assert found["files"] <= 25
    assert found["bytes"] < 1_000_000


def test_a_worker_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """A stopped worker's numbers are shown as they were; the scrape takes no longer than a moment."""
    found = _run("stopped", tmp_path)
    assert found == {"total": 3, "gauge": 1, "threads": 2}


def test_who_leaves_in_order_is_folded(tmp_path: Path) -> None:
    """A worker that ends in order puts its counts into the archive and takes its gauges with it."""
    assert _run("leaves", tmp_path) == {"both": 2, "level": 1, "jobs": 15, "files": 1}
