"""Many worker processes, one `/metrics`: finds out whether there are others, and joins them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from fastapi_observe.workers.directory import (
    app_identity,
    directory_name,
    is_supported,
    open_root,
    remove_stale_directories,
    supervisor_pid,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.workers.worker import Worker

WORKER_GROUPS: Final[weakref.WeakSet[WorkerGroup]] = weakref.WeakSet()
"""What a fork must take apart in the child."""

JOINED_WORKERS: Final[dict[Path, tuple[Worker, list[object]]]] = {}
"""The one worker of this process in a directory, and who uses it: a POSIX lock is the process's, not the opener's."""

INSTALL_COUNTS: Final[Counter[str]] = Counter()
"""How often each app was installed in this process; in every worker those of the same name come in the same order."""

LOCK: Final = threading.Lock()

RETRY_INTERVAL: Final = 1.0
"""Seconds until a worker that could not join the others tries again."""


class Sharing(Protocol):
    """Whose values are shared."""

    def share(self, worker: Worker, scope: str) -> None:
        """Put all values into the worker's files; `scope` says which install of a process they belong to."""

    def unshare(self) -> None:
        """Take the values back into this process."""

    def mark_degraded(self) -> None:
        """Show that this process is counted apart though it is one of several."""

    def after_fork(self) -> None:
        """Begin at zero, with fresh locks."""


class WorkerGroup:
    """Decides, in the worker, whether the values of one install are shared with other processes.

    `start` and `stop` may be called any number of times; in the single process they do nothing. Where the others cannot
    be joined it is tried again, in a thread, until they can. `title` is what the app calls itself.
    """

    def __init__(self, settings: ObserveSettings, faults: InternalErrors, metrics: Sharing, title: str = "") -> None:
        self._wanted = settings.metrics and settings.multiprocess == "auto"
        self._directory = settings.multiprocess_directory
        self._most = settings.max_series_per_metric
        self._faults = faults
        self._metrics = metrics
        self._installed_in = os.getpid()
        self._app = app_identity(settings.service_name, title)
        self._scope = f"{self._app}-{INSTALL_COUNTS[self._app]}"
        INSTALL_COUNTS[self._app] += 1
        self._settled = False
        self._at: Path | None = None
        self._turn = threading.Lock()
        self._retry: tuple[threading.Thread, threading.Event] | None = None
        WORKER_GROUPS.add(self)

    @property
    def is_multiprocess(self) -> bool:
        """Whether this is a process that a supervisor started, most often beside others."""
        return supervisor_pid(self._installed_in) is not None

    def start(self) -> None:
        """Join the other workers of this server, if there are any; never raises."""
        if self._settled:
            return
        self._settled = True
        pid = supervisor_pid(self._installed_in) if self._wanted else None
        if pid is None:
            return
        try:
            if not is_supported():
                raise OSError("this system lacks the calls for it")  # noqa: TRY301 - said in one place
            self._join(pid)
        except OSError as exc:
            self._metrics.mark_degraded()
            logging.getLogger("fastapi_observe").warning(
                "worker processes are counted apart, each /metrics shows one of them: %s", exc
            )
            if is_supported():
                self._keep_trying(pid)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never stops the app
            self._faults("workers.start", exc)

    def _keep_trying(self, pid: int) -> None:
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(RETRY_INTERVAL):
                try:
                    with self._turn:
                        if not ended.is_set():
                            self._join(pid)
                except OSError:
                    continue
                except Exception as exc:  # noqa: BLE001 - as in `start`
                    self._faults("workers.start", exc)
                return

        thread = threading.Thread(target=run, name="fastapi-observe-join", daemon=True)
        self._retry = thread, ended
        thread.start()

    def _join(self, pid: int) -> None:
        from fastapi_observe.workers.worker import Worker  # noqa: PLC0415 - a single process needs none of it

        root = open_root(self._directory)
        with LOCK:
            # All installs of a process meet the others in one place: they show the same default registry.
            name = next((at.name for at in JOINED_WORKERS if at.parent == root), None) or directory_name(pid, self._app)
            at = root / name
            if at not in JOINED_WORKERS:
                JOINED_WORKERS[at] = (Worker(at, self._faults, self._most), [])
                remove_stale_directories(root, name)
            worker, users = JOINED_WORKERS[at]
            users.append(self)
            self._at = at
        self._metrics.share(worker, self._scope)

    def stop(self) -> None:
        """Leave the others; what was counted stays in their totals."""
        self._settled = False
        if self._retry is not None:
            self._retry[1].set()
            self._retry = None
        with self._turn:
            if self._at is None:
                return
            self._metrics.unshare()
            with LOCK:
                worker, users = JOINED_WORKERS[self._at]
                users.remove(self)
                if not users:
                    del JOINED_WORKERS[self._at]
                    worker.leave()
                self._at = None

    def after_fork(self) -> None:
        """Forget the parent's files, in a child that was forked."""
        self._settled = False
        self._at = self._retry = None
        self._turn = threading.Lock()
        self._metrics.after_fork()


def _after_fork() -> None:
    LOCK._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - the threading module does so too
    for workers in list(WORKER_GROUPS):
        workers.after_fork()
    for worker, _ in JOINED_WORKERS.values():
        worker.close()
    JOINED_WORKERS.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows does not fork
    os.register_at_fork(after_in_child=_after_fork)
