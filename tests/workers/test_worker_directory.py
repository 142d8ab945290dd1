"""The directory that workers of one server share: its supervisor, its safety, and when it is removed."""

from __future__ import annotations

import logging
import multiprocessing.process
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import interpreter
import pytest
from injection import failing, replacing
from starlette.testclient import TestClient

from fastapi_observe.workers.directory import is_process_alive, process_identity
from fastapi_observe.workers.locks import lock_file

pytest.importorskip("fcntl")

from members import NAME, Member, items_app

from fastapi_observe.workers import directory
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
    assert find_supervisor(os.getpid()) is None  # a child without a socket
    monkeypatch.setattr(multiprocessing.current_process(), "name", "granian-worker")
    assert find_supervisor(os.getpid()) == (7, None)
    monkeypatch.delitem(sys.modules, "multiprocessing.process")
    assert find_supervisor(os.getpid()) is None


ADDRESSES = """
    import json, os, socket, sys
    from fastapi_observe.workers.directory import Supervisor, directory_name, find_supervisor

    supervisor, found = os.getpid(), []
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", 0))
    unbound = socket.socket()
    left, right = socket.socketpair()
    local = socket.socket(socket.AF_UNIX)
    local.bind(sys.argv[1])

    def child(*inherited, own=()):
        # What a child with these sockets of its parent finds, and sockets of its own.
        reading, writing = os.pipe()
        if not os.fork():
            for each in {server, client, datagram, unbound, left, right, local} - set(inherited):
                each.close()
            kept = [socket.create_server(("127.0.0.1", port)) for port in own]
            one = find_supervisor(supervisor)
            os.write(writing, json.dumps([one and one.sockets, [repr(each.getsockname()) for each in kept]]).encode())
            os._exit(0)
        os.close(writing)
        os.wait()
        return json.loads(os.read(reading, 9999))

    assert child(client, datagram, unbound, left, right) == [None, []]
    assert child(client, server) == [[repr(server.getsockname())], []]
    both = sorted(repr(each.getsockname()) for each in (server, local))
    assert child(server, local) == [both, []]
    assert child(server, own=[0])[0] == [repr(server.getsockname())]
    bound, own = child(client, own=[0, 0])
    assert bound == sorted(own)
    names = {directory_name(Supervisor(supervisor, addresses), "app") for addresses in (tuple(both), tuple(both[:1]))}
    assert len(names) == 2
"""


def test_a_worker_has_a_listening_socket(tmp_path: Path) -> None:
    """Workers are distinguished by the addresses that the supervisor has passed on, else by those they have bound.

    A child without any is a single process. Connections, datagram sockets and unnamed sockets do not count.
    """
    done = interpreter.run(ADDRESSES, tmp_path / "socket")
    assert done.returncode == 0, done.stderr


def test_without_descriptors_in_proc() -> None:
    """Without /proc no socket is required."""
    with failing("workers.directory:_open_sockets", error=FileNotFoundError()):
        assert find_supervisor(1) == (1, None)


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


def test_stale_directories_are_removed(tmp_path: Path) -> None:
    """A directory goes when supervisor and workers have ended; one of another PID namespace after an hour."""
    alive = process_identity(os.getpid())
    namespace = alive.partition("-")[0]
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
    with failing(directory.remove_directory, error=OSError("busy")):
        remove_stale_directories(tmp_path, names["ours"])


def test_start_times_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc the start time of a process comes from psutil, and there are no namespaces."""
    monkeypatch.setattr(directory, "Path", lambda *_: Path("/nowhere/at/all"))
    own = process_identity(os.getpid())
    assert own.startswith(f"0-{os.getpid()}-")
    assert is_process_alive(own)
    assert process_identity(4194305) == "0-4194305-0"
    assert not is_process_alive("0-4194305-0")


def test_a_directory_that_is_removed_while_a_worker_joins(tmp_path: Path) -> None:
    """A worker that waits for the lock while the last other worker removes the directory makes a new one."""
    removed: list[int] = []

    def lock_and_lose(original: Callable[[int], None], descriptor: int) -> None:
        original(descriptor)
        if not removed:
            removed.append(descriptor)
            directory.remove_directory(tmp_path / NAME)

    with replacing(lock_file, lock_and_lose):
        one = Member(tmp_path)
    one.metrics.counter("jobs_total", "Jobs.").inc()
    assert one.samples()["jobs_total"] == {(): 1}
    one.leave()
