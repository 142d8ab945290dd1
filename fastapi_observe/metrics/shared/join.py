"""`WorkerGroup`: shares the metrics of one install if this process is one of several workers."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.workers.directory import (
    app_identity,
    directory_name,
    find_supervisor,
    is_supported,
    open_root,
    remove_stale_directories,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.shared.sharing import MetricSharing
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.workers.directory import Supervisor
    from fastapi_observe.workers.worker import Worker


class JoinedWorker(NamedTuple):
    """The worker of this process in a directory, and the installs that use it."""

    worker: Worker
    users: list[WorkerGroup]


WORKER_GROUPS: Final[weakref.WeakSet[WorkerGroup]] = weakref.WeakSet()
"""All installs of this process, for the child after a fork."""

JOINED_WORKERS: Final[dict[Path, JoinedWorker]] = {}
"""By directory, one for each. POSIX locks belong to the process: a second worker in it would see the first as ended."""

INSTALL_COUNTS: Final[Counter[str]] = Counter()
"""Installs of each app in this process. Every worker makes them in the same order: the number identifies one in all."""

LOCK: Final = threading.Lock()
"""For `JOINED_WORKERS`. Taken after `WorkerGroup._join_lock`, and before all locks of a worker."""

JOIN_RETRY_INTERVAL: Final = 1.0
"""Seconds until a worker that could not join tries again."""

DIRECTORY_STEP: Final = (
    "Retried every second; if that does not help, set multiprocess_directory to an existing directory that you can "
    "write to."
)
SINGLE_STEP: Final = "Run one worker per server and port, or set otlp_metrics: each worker then exports its own."
"""What to do where sharing is not possible. Not `metrics_port`: workers have it in common, and one of them responds."""


class WorkerGroup:
    """Shares the metrics of one install with the other worker processes of its server, if there are any.

    The decision is made in `start`, since a process that installs may fork its workers later. In a single process
    `start` and `stop` do nothing. Both may be called any number of times.
    """

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, sharing: MetricSharing, title: str = ""
    ) -> None:
        self._enabled = settings.metrics
        self._is_off = settings.multiprocess == "off"
        self._configured_directory = settings.multiprocess_directory
        self._max_ended_label_sets = settings.max_series_per_metric
        self._internal_errors = internal_errors
        self._sharing = sharing
        self._installed_in = os.getpid()
        self._app = app_identity(settings.service_name, title)
        self._install_id = f"{self._app}-{INSTALL_COUNTS[self._app]}"
        INSTALL_COUNTS[self._app] += 1
        self._started = False
        self.is_single = False
        """Whether no other process supervises this one, which serves. Unknown, so False, before `start`."""
        self._directory: Path | None = None
        self._join_lock = threading.Lock()
        self._retry_ended: threading.Event | None = None
        WORKER_GROUPS.add(self)

    @property
    def is_multiprocess(self) -> bool:
        """Whether another process supervises this one, so that there may be more workers on the same port."""
        return find_supervisor(self._installed_in) is not None

    @property
    def live_workers(self) -> int:
        """The number of workers that share their metrics, this one included, as the last scrape found it."""
        joined = JOINED_WORKERS.get(self._directory) if self._directory is not None else None
        return 1 if joined is None else joined.worker.live_workers

    @property
    def is_degraded(self) -> bool:
        """Whether some metrics are reported by this worker process only."""
        return self._sharing.workers_collector.is_degraded

    def start(self) -> None:
        """Join the other workers of this server, if there are any. Never raises."""
        if self._started:
            return
        self._started = True
        supervisor = find_supervisor(self._installed_in) if self._enabled else None
        if supervisor is None:
            self.is_single = self._enabled
            return
        if self._is_off:
            self._sharing.mark_off()
            return
        try:
            if not is_supported():
                raise OSError("this system lacks posix_fallocate or mkfifo")  # noqa: TRY301 - reported like any other
            self._join(supervisor)
        except OSError as exc:
            self._sharing.mark_degraded()
            step = DIRECTORY_STEP if is_supported() else SINGLE_STEP
            logging.getLogger("fastapi_observe").warning(
                "Worker processes do not share their metrics: %s. Each /metrics reports one worker only. %s", exc, step
            )
            if is_supported():
                with suppress(RuntimeError):  # no thread can be started
                    self._join_later(supervisor)
        except Exception as exc:  # noqa: BLE001 - an internal error never stops the app
            self._internal_errors("workers.start", exc)

    def _join_later(self, supervisor: Supervisor) -> None:
        """Try again in a thread until it works or `stop` is called."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(JOIN_RETRY_INTERVAL):
                try:
                    with self._join_lock:
                        if not ended.is_set():
                            self._join(supervisor)
                except OSError:
                    continue
                except Exception as exc:  # noqa: BLE001 - as in `start`
                    self._internal_errors("workers.start", exc)
                return

        threading.Thread(target=run, name="fastapi-observe-join", daemon=True).start()
        self._retry_ended = ended

    def _join(self, supervisor: Supervisor) -> None:
        from fastapi_observe.workers.worker import Worker  # noqa: PLC0415 - not needed in a single process

        root = open_root(self._configured_directory)
        with LOCK:
            # All installs of a process use one directory, since they expose the same default registry.
            joined = (path.name for path in JOINED_WORKERS if path.parent == root)
            name = next(joined, None) or directory_name(supervisor, self._app)
            directory = root / name
            if directory not in JOINED_WORKERS:
                worker = Worker(directory, self._internal_errors, self._max_ended_label_sets)
                JOINED_WORKERS[directory] = JoinedWorker(worker, [])
                remove_stale_directories(root, name)
            worker, users = JOINED_WORKERS[directory]
            users.append(self)
            self._directory = directory
        self._sharing.share(worker, self._install_id)

    def stop(self) -> None:
        """Leave the other workers. What was counted stays in their totals."""
        self._started = self.is_single = False
        if self._retry_ended is not None:
            self._retry_ended.set()
            self._retry_ended = None
        with self._join_lock:
            if self._directory is None:
                return
            self._sharing.unshare()
            with LOCK:
                worker, users = JOINED_WORKERS[self._directory]
                users.remove(self)
                if not users:
                    del JOINED_WORKERS[self._directory]
                    worker.leave()
                self._directory = None

    def after_fork(self) -> None:
        """Forget the parent's worker, in the child of a fork."""
        self._started = False
        self._directory = self._retry_ended = None
        self._join_lock = threading.Lock()
        self._sharing.after_fork()


def _after_fork() -> None:
    # A child has one thread and the memory of its parent: locks may be held by threads that do not exist here, and
    # every cell is a view into the parent's file. `close` unmaps nothing that is in use, so the order is: first give
    # all metrics cells of this process, then close the parent's descriptors.
    LOCK._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as the threading module does
    for group in list(WORKER_GROUPS):
        group.after_fork()
    for worker, _ in JOINED_WORKERS.values():
        worker.close()
    JOINED_WORKERS.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
    os.register_at_fork(after_in_child=_after_fork)
