"""The directory that workers of one server share: its supervisor, its safety, and when it is removed."""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

pytest.importorskip("fcntl")

from members import NAME, Member, items_app

from fastapi_observe.workers import directory
from fastapi_observe.workers import worker as worker_module
from fastapi_observe.workers.directory import UnsafeDirectoryError, find_supervisor, open_root, remove_stale_directories

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen


# Supervisor


def test_a_single_process_has_no_supervisor() -> None:
    """A process that is not forked, and a child of neither multiprocessing nor gunicorn."""
    assert find_supervisor(os.getpid()) is None


def test_the_supervisor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork it is the process that called `install`, else multiprocessing's parent, else gunicorn's master."""
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27.0.1")
    assert find_supervisor(os.getpid()) == (os.getppid(), None)
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: SimpleNamespace(pid=7))
    assert find_supervisor(os.getpid()) == (7, None)
    assert find_supervisor(1) == (1, None)
    monkeypatch.setenv("SERVER_SOFTWARE", "other/1")
    monkeypatch.delitem(sys.modules, "multiprocessing.process")
    assert find_supervisor(os.getpid()) is None


def test_a_worker_has_a_listening_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers are told apart by the addresses that the supervisor has passed on, else by those they have bound.

    A child without any is a single process. Connections, datagram sockets and unnamed sockets do not count.
    """
    own: list[socket.socket] = []
    inherited: list[socket.socket] = []
    real = directory._open_sockets

    def open_sockets(pid: str) -> dict[int, str]:
        found = real("self")
        return {one.fileno(): found[one.fileno()] for one in (own if pid == "self" else inherited)}

    def addresses(*inherited_sockets: socket.socket) -> tuple[str, ...] | None:
        inherited[:] = inherited_sockets
        found = find_supervisor(os.getpid())
        return None if found is None else found.sockets

    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: SimpleNamespace(pid=7))
    monkeypatch.setattr(directory, "_open_sockets", open_sockets)
    left, right = socket.socketpair()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as unbound,
        socket.socket(socket.AF_UNIX) as local,
        left,
        right,
    ):
        datagram.bind(("127.0.0.1", 0))
        local.bind(str(tmp_path / "socket"))
        own += [client, datagram, unbound, left, right]
        assert addresses(*own) is None
        own += [server, local]
        names = {one: repr(one.getsockname()) for one in (server, local)}
        assert addresses(client, server) == (names[server],)
        assert addresses(server, local) == tuple(sorted(names.values()))
        assert addresses() == tuple(sorted(names.values()))
        both, one = directory.Supervisor(7, addresses()), directory.Supervisor(7, addresses(server))
        assert directory.directory_name(both, "app") != directory.directory_name(one, "app")


def test_without_descriptors_in_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc no socket is required."""
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: SimpleNamespace(pid=7))
    monkeypatch.setattr(directory, "_open_sockets", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
    assert find_supervisor(os.getpid()) == (7, None)


# Safety


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
    """A directory that another user owns or may write to is not used; metrics are degraded, with one warning."""
    _hostile(kind, tmp_path)
    app = items_app()
    seen = observed(app, multiprocess_directory=str(tmp_path), capture_logging=False)
    with caplog.at_level(logging.WARNING, "fastapi_observe"), TestClient(app) as client:
        client.get("/items/1")
        client.get("/items/1")
        assert seen.sample("fastapi_observe_metrics_degraded") == 1
        assert seen.total("http_requests_total") == 2
    assert len([record for record in caplog.records if "do not share their metrics" in record.message]) == 1
    assert not seen.observe.internal_errors.counts


def test_the_first_writable_place_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shared memory it is the temporary directory. An unsafe directory in the first place is an error."""
    monkeypatch.setattr(directory, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert open_root(None).parent == tmp_path
    monkeypatch.setattr(directory, "SHARED_MEMORY", tmp_path)
    next(tmp_path.glob("fastapi-observe-*")).chmod(0o770)
    with pytest.raises(UnsafeDirectoryError):
        open_root(None)
    with pytest.raises(FileNotFoundError):
        open_root(str(tmp_path / "missing"))


def test_stale_directories_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory goes when supervisor and workers have ended; one of another PID namespace after an hour."""
    namespace = directory._pid_namespace()
    alive = f"{namespace}-{os.getpid()}-{directory._start_time(os.getpid())}"
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
    remove_stale_directories(tmp_path, names["ours"])
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {names[name] for name in ("alive", "foreign", "held", "ours", "no")}
    holder.communicate(b"\n")
    monkeypatch.setattr(directory, "remove_directory", lambda _: (_ for _ in ()).throw(OSError("busy")))
    remove_stale_directories(tmp_path, names["ours"])


def test_start_times_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc the start time of a process comes from psutil, and there are no namespaces."""
    monkeypatch.setattr(directory, "Path", lambda *_: Path("/nowhere/at/all"))
    assert directory._start_time(os.getpid()) > 0
    assert directory._start_time(4194305) == 0
    assert directory._pid_namespace() == 0


def test_a_directory_that_is_removed_while_a_worker_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that waits for the lock while the last other worker removes the directory makes a new one."""
    real = directory.lock_file
    removed: list[int] = []

    def lock_and_lose(descriptor: int) -> None:
        real(descriptor)
        if not removed:
            removed.append(descriptor)
            directory.remove_directory(tmp_path / NAME)

    monkeypatch.setattr(worker_module, "lock_file", lock_and_lose)
    one = Member(tmp_path)
    one.metrics.counter("jobs_total", "Jobs.").inc()
    assert one.samples()["jobs_total"] == {(): 1}
    one.leave()
