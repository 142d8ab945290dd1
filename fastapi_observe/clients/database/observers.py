"""`Watch`: which apps are told about an instrumented engine or pool, each under its own name of the pool."""

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

    Faults = Callable[[str, BaseException], None]


class PoolObserver:
    """One app that is told: `pool` is the label of the pool there, `facts` are what every span of it says.

    No fault of ours leaves it.
    """

    __slots__ = ("db", "facts", "faults", "pool")

    def __init__(self, db: DatabaseClient, faults: Faults, pool: str, facts: Mapping[str, Any]) -> None:
        self.db = db
        self.faults = faults
        self.pool = pool
        self.facts: dict[str, Any] = {**facts, "db.client.connection.pool.name": pool}

    def record_connection_wait(self, seconds: float) -> None:
        """Take down how long a caller waited for a connection, or for the refusal of one."""
        try:
            self.db.record_connection_wait(self.pool, seconds)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            self.faults("pool.waited", exc)

    def record_connection_event(self, event: str) -> None:
        """Count what happened on a connection."""
        try:
            self.db.record_connection_event(self.pool, event)
        except Exception as exc:  # noqa: BLE001 - as above
            self.faults("pool.event", exc)


class ObserverSet:
    """Those who are told about one engine or pool, and those who wait for a connection of it.

    `waiting` has one item for each: `append` and `pop` need no lock.
    """

    __slots__ = ("_observers", "_only", "waiting")

    def __init__(self) -> None:
        self._observers: tuple[PoolObserver, ...] = ()
        self._only: PoolObserver | None = None
        self.waiting: list[None] = []

    def begin(self) -> None:
        """Put what measures around the engine or pool: somebody is told now."""

    def end(self) -> None:
        """Take away what `begin` put there, as far as it came: nobody is told any more."""

    def add(
        self,
        db: DatabaseClient,
        faults: Faults,
        name: str,
        read: Callable[[], PoolState],
        facts: Mapping[str, Any] | None = None,
    ) -> Callable[[], None]:
        """Tell one more app, unless it is told already; the result stops that. `name` becomes the label if it is free.

        What cannot be instrumented leaves nothing behind.
        """
        if any(known.db is db for known in self._observers):
            return _nothing
        label = db.reserve_pool_name(name)
        remove_pool = db.add_pool(label, read)
        observer = PoolObserver(db, faults, label, facts or {})
        self._tell((*self._observers, observer))

        def remove() -> None:
            if observer in self._observers:
                self._tell(tuple(other for other in self._observers if other is not observer))
                remove_pool()
                if not self._observers:
                    self.end()

        if self._only is not None:
            try:
                self.begin()
            except BaseException:
                remove()
                raise
        return remove

    def _tell(self, observers: tuple[PoolObserver, ...]) -> None:
        self._observers, self._only = observers, observers[0] if len(observers) == 1 else None

    def observer(self) -> PoolObserver | None:
        """Return whom to tell now: the app whose request this is part of, else the first; None if nobody is left."""
        if self._only is not None:
            return self._only
        observers = self._observers
        try:
            if observers and (exchange := current_record()) is not None:
                for observer in observers:
                    if observer.db is exchange.observability.db:
                        return observer
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("pool.observer", exc)
        return observers[0] if observers else None

    def fault(self, site: str, exc: BaseException) -> None:
        """Tell a fault of ours to the app that is told of the rest."""
        observer = self.observer()
        if observer is not None:
            observer.faults(site, exc)

    def record_connection_event(self, event: str) -> None:
        """Count what happened on a connection."""
        observer = self.observer()
        if observer is not None:
            observer.record_connection_event(event)

    def timed_acquire(self, call: Callable[..., Any], *args: Any) -> Any:
        """Ask for a connection; measure how long that takes, and count a refusal: `timeout` or `error`."""
        self.waiting.append(None)
        began = perf_counter()
        try:
            connection = call(*args)
        except Exception as exc:  # a cancellation is none: nobody refused anything
            self._refused(perf_counter() - began, exc)
            raise
        finally:
            self.waiting.pop()
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(perf_counter() - began)
        return connection

    async def timed_acquire_async(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do with `await` what `ask` does."""
        self.waiting.append(None)
        began = perf_counter()
        try:
            connection = await call(*args)
        except Exception as exc:
            self._refused(perf_counter() - began, exc)
            raise
        finally:
            self.waiting.pop()
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(perf_counter() - began)
        return connection

    def _refused(self, seconds: float, exc: Exception) -> None:
        observer = self.observer()
        if observer is not None:
            observer.record_connection_wait(seconds)
            observer.record_connection_event("timeout" if is_timeout(exc) else "error")


def _nothing() -> None:
    """Undo nothing."""
