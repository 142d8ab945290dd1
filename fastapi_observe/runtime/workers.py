"""Many worker processes, one `/metrics`: finds out whether there are others, and joins them."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from fastapi_observe.runtime.worker_place import directory_name, open_root, possible, supervisor, sweep

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi_observe.records.faults import Faults
    from fastapi_observe.runtime.worker_meeting import Worker
    from fastapi_observe.settings import ObserveSettings

ALL: Final[weakref.WeakSet[Workers]] = weakref.WeakSet()
"""What a fork must take apart in the child."""

JOINED: Final[dict[Path, tuple[Worker, list[object]]]] = {}
"""The one worker of this process in a directory, and who uses it: a POSIX lock is the process's, not the opener's."""

ORDINALS: Final = itertools.count()
"""Tells the installs of one process apart; in every worker they come in the same order."""

LOCK: Final = threading.Lock()


class Sharing(Protocol):
    """Whose values are shared."""

    def share(self, worker: Worker, scope: str) -> None:
        """Put all values into the worker's files; `scope` says which install of a process they belong to."""

    def unshare(self) -> None:
        """Take the values back into this process."""

    def degrade(self) -> None:
        """Show that this process is counted apart though it is one of several."""

    def forked(self) -> None:
        """Begin at zero, with fresh locks."""


class Workers:
    """Decides, in the worker, whether the values of one install are shared with other processes.

    `start` and `stop` may be called any number of times; in the single process they do nothing.
    """

    def __init__(self, settings: ObserveSettings, faults: Faults, metrics: Sharing) -> None:
        self._wanted = settings.metrics and settings.workers == "auto"
        self._directory = settings.workers_directory
        self._most = settings.series_per_metric
        self._faults = faults
        self._metrics = metrics
        self._installed_in = os.getpid()
        self._scope = str(next(ORDINALS))
        self._settled = False
        self._at: Path | None = None
        ALL.add(self)

    @property
    def are_several(self) -> bool:
        """Whether this is a process that a supervisor started, most often beside others."""
        return supervisor(self._installed_in) is not None

    def start(self) -> None:
        """Join the other workers of this server, if there are any; never raises."""
        if self._settled:
            return
        self._settled = True
        pid = supervisor(self._installed_in) if self._wanted else None
        if pid is None:
            return
        try:
            if not possible():
                raise OSError("this system lacks the calls for it")  # noqa: TRY301 - said in one place
            root = open_root(self._directory)
            self._join(root, directory_name(pid))
        except OSError as exc:
            self._metrics.degrade()
            logging.getLogger("fastapi_observe").warning(
                "worker processes are counted apart, each /metrics shows one of them: %s", exc
            )
        except Exception as exc:  # noqa: BLE001 - a fault of ours never stops the app
            self._faults("workers.start", exc)

    def _join(self, root: Path, name: str) -> None:
        from fastapi_observe.runtime.worker_meeting import Worker  # noqa: PLC0415 - a single process needs none of it

        with LOCK:
            at = root / name
            if at not in JOINED:
                JOINED[at] = (Worker(at, self._faults, self._most), [])
                sweep(root, name)
            worker, users = JOINED[at]
            users.append(self)
            self._at = at
        self._metrics.share(worker, self._scope)

    def stop(self) -> None:
        """Leave the others; what was counted stays in their totals."""
        self._settled = False
        if self._at is None:
            return
        self._metrics.unshare()
        with LOCK:
            worker, users = JOINED[self._at]
            users.remove(self)
            if not users:
                del JOINED[self._at]
                worker.leave()
            self._at = None

    def forked(self) -> None:
        """Forget the parent's files, in a child that was forked."""
        self._settled = False
        self._at = None
        self._metrics.forked()


def _after_fork() -> None:
    LOCK._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - the threading module does so too
    for workers in list(ALL):
        workers.forked()
    for worker, _ in JOINED.values():
        worker.forget()
    JOINED.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows does not fork
    os.register_at_fork(after_in_child=_after_fork)
