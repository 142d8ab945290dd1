"""`ObserverSet`: the apps that measure an engine or pool, each with its own label for the pool."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi_observe.clients.database.errors import is_timeout
from fastapi_observe.records.guard import report_error
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.records.pool import PoolState

    ReportError = Callable[[str, BaseException], None]


class PoolObserver:
    """An app that measures an engine or pool. Raises nothing: internal errors are reported.

    `pool` is the label of the pool in this app, `attributes` are those of each span.
    """

    __slots__ = ("attributes", "db", "internal_errors", "pool")

    def __init__(
        self, db: DatabaseClient, internal_errors: ReportError, pool: str, attributes: Mapping[str, Any]
    ) -> None:
        self.db = db
        self.internal_errors = internal_errors
        self.pool = pool
        self.attributes: dict[str, Any] = {**attributes, "db.client.connection.pool.name": pool}

    def record_connection_wait(self, seconds: float) -> None:
        """Record the time that a caller waited for a connection, or for the failure to get one."""
        try:
            self.db.reporter.record_connection_wait(self.pool, seconds)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's query
            self.internal_errors("pool.connection_wait", exc)

    def record_connection_event(self, event: str) -> None:
        """Count an event of a connection."""
        try:
            self.db.reporter.record_connection_event(self.pool, event)
        except Exception as exc:  # noqa: BLE001 - as above
            self.internal_errors("pool.connection_event", exc)


class ObserverSet:
    """The apps that measure one engine or pool, and the callers that wait for one of its connections.

    `waiting` has one item for each caller: `append` and `pop` of a list are atomic, so that no lock is needed.
    """

    __slots__ = ("_observers", "_only", "waiting")

    def __init__(self) -> None:
        self._observers: tuple[PoolObserver, ...] = ()
        self._only: PoolObserver | None = None
        self.waiting: list[None] = []

    def install(self) -> None:
        """Wrap the engine or pool. Called for the first app."""

    def uninstall(self) -> None:
        """Remove the wrappers, also those of an `install` that raised. Called after the last app."""

    def add(
        self,
        db: DatabaseClient,
        internal_errors: ReportError,
        name: str,
        read: Callable[[], PoolState],
        attributes: Mapping[str, Any] | None = None,
    ) -> Callable[[], None]:
        """Register an app as an observer. Returns a function that unregisters it.

        Does nothing if the app is already registered. `name` becomes the label of the pool unless another pool has it.
        If the engine or pool cannot be wrapped, the app is unregistered and the exception is raised.
        """
        if any(known.db is db for known in self._observers):
            return lambda: None
        label = db.reserve_pool_name(name)
        remove_pool = db.add_pool(label, read)
        observer = PoolObserver(db, internal_errors, label, attributes or {})
        self._set_observers((*self._observers, observer))

        def remove() -> None:
            if observer in self._observers:
                self._set_observers(tuple(other for other in self._observers if other is not observer))
                remove_pool()
                if not self._observers:
                    self.uninstall()

        if self._only is not None:
            try:
                self.install()
            except BaseException:
                remove()
                raise
        return remove

    def _set_observers(self, observers: tuple[PoolObserver, ...]) -> None:
        self._observers, self._only = observers, observers[0] if len(observers) == 1 else None

    def observer(self) -> PoolObserver | None:
        """Return the app that measures now: the one of the current request, else the first; None if there is none."""
        if self._only is not None:
            return self._only
        observers = self._observers
        try:
            if observers and (record := current_record()) is not None:
                for observer in observers:
                    if observer.db is record.observability.db:
                        return observer
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("pool.observer", exc)
        return observers[0] if observers else None

    def report_error(self, site: str, exc: BaseException) -> None:
        """Report an internal error to the app that measures now."""
        observer = self.observer()
        if observer is not None:
            observer.internal_errors(site, exc)

    def record_connection_event(self, event: str) -> None:
        """Count an event of a connection."""
        observer = self.observer()
        if observer is not None:
            observer.record_connection_event(event)

    def timed_acquire(self, acquire: Callable[..., Any], *args: Any) -> Any:
        """Return the connection of `acquire(*args)`; record the wait, and count a failure: `timeout` or `error`."""
        self.waiting.append(None)
        start = perf_counter()
        try:
            connection = acquire(*args)
        except Exception as exc:  # a cancellation is not a failure of the pool
            self._record_failure(perf_counter() - start, exc)
            raise
        finally:
            self.waiting.pop()
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(perf_counter() - start)
        return connection

    async def timed_acquire_async(self, acquire: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await the connection of `acquire(*args)`, measured as in `timed_acquire`."""
        self.waiting.append(None)
        start = perf_counter()
        try:
            connection = await acquire(*args)
        except Exception as exc:
            self._record_failure(perf_counter() - start, exc)
            raise
        finally:
            self.waiting.pop()
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(perf_counter() - start)
        return connection

    def _record_failure(self, seconds: float, exc: Exception) -> None:
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(seconds)
            observer.record_connection_event("timeout" if is_timeout(exc) else "error")
