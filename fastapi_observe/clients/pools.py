"""What the instrumented pools of database drivers share: what their connections report, and how they come to do so.

A connection reports while it is out of its pool: its class becomes a generated subclass of what it was, and what it was
again when it goes back. So nothing of a driver is patched for others, and what a pool does with a connection of its own
accord (connect, check, reset) is not taken for the user's queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from fastapi_observe.clients.streams import Stream
from fastapi_observe.records.exchange import current_exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi_observe.clients.database import DatabaseClient, Query
    from fastapi_observe.records.pool import PoolState

    Faults = Callable[[str, BaseException], None]
    Address = tuple[str | None, int | None, str | None]

SYSTEM: Final = "postgresql"
"""`db.system.name` of what these drivers speak to."""

MOST_TARGETS: Final = 256
"""Addresses of one pool that are told apart; later ones are not told."""


def size_of(values: Any) -> int | None:
    """Return the number of parameter sets; None where they are made on the way."""
    try:
        return len(values)
    except Exception:  # noqa: BLE001 - the user's __len__ may raise anything
        return None


def text_of(statement: Any) -> str:
    """Return the text of what psycopg composes, placeholders for the values of a template string."""
    if hasattr(statement, "as_string"):
        return str(statement.as_string(None))
    if hasattr(statement, "interpolations"):
        return "%s".join(statement.strings)
    return str(statement)


class Target:
    """One database on one server, as a pool sees it: what its connections report to.

    No fault of ours leaves it.
    """

    __slots__ = ("_classes", "_cursors", "_facts", "_streams", "watch")

    def __init__(self, watch: PoolWatch, address: Address) -> None:
        host, port, database = address
        facts = {
            "server.address": host,
            "server.port": None if host is None or host.startswith("/") else port,  # a socket's file has no port
            "db.namespace": database,
            "db.client.connection.pool.name": watch.name,
        }
        self._facts = {key: value for key, value in facts.items() if value is not None}
        self._classes: dict[tuple[type, type], type] = {}
        self._cursors: WeakKeyDictionary[Any, Stream] = WeakKeyDictionary()
        self._streams: WeakKeyDictionary[Any, list[Stream]] = WeakKeyDictionary()
        self.watch = watch

    def begin(self, statement: object, batch: int | None = None) -> Query | None:
        """Open the operation of a query; None if an outer one measures it."""
        observer = self.watch.observer()
        if observer is None:
            return None
        try:
            if not isinstance(statement, str | bytes):
                statement = text_of(statement)
            query = observer.db.statement(statement, system=SYSTEM, batch=batch, facts=self._facts)
            return None if query is None else query.open()
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
            observer.faults("pool.begin", exc)
            return None

    def end(
        self,
        query: Query,
        exc: BaseException | None = None,
        rows: Callable[[Any], int | None] | None = None,
        result: Any = None,
    ) -> None:
        """Close the operation of a query; `rows(result)` is the number of its rows, if known."""
        try:
            try:
                if rows is not None and (count := rows(result)) is not None:
                    query.rows(count)
            finally:
                query.close(exc)
        except Exception as fault:  # noqa: BLE001 - as above
            self._fault("pool.end", fault)

    def _fault(self, site: str, exc: BaseException) -> None:
        observer = self.watch.observer()
        if observer is not None:
            observer.faults(site, exc)

    async def run(  # noqa: PLR0913, PLR0917 - a call and what is told of it
        self,
        call: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        options: dict[str, Any],
        statement: object,
        rows: Callable[[Any], int | None] | None = None,
        batch: int | None = None,
    ) -> Any:
        """Await `call(*args, **options)` as one query; `rows` reads the number of rows from the result."""
        query = self.begin(statement, batch)
        if query is None:
            return await call(*args, **options)
        try:
            result = await call(*args, **options)
        except BaseException as exc:
            self.end(query, exc)
            raise
        self.end(query, None, rows, result)
        return result

    def run_sync(  # noqa: PLR0913, PLR0917 - as above
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        statement: object,
        rows: Callable[[Any], int | None] | None = None,
        batch: int | None = None,
    ) -> Any:
        """Do without `await` what `run` does."""
        query = self.begin(statement, batch)
        if query is None:
            return call(*args, **options)
        try:
            result = call(*args, **options)
        except BaseException as exc:
            self.end(query, exc)
            raise
        self.end(query, None, rows, result)
        return result

    def stream(self, statement: object, connection: Any, cursor: Any = None) -> Stream:
        """Open the operation of a query whose rows come as they are asked for, at most until `finish`."""
        if cursor is not None:
            self.stream_of(cursor).end()  # it is used again
        stream = Stream(self.end, self.begin(statement))
        if stream.open:
            self._streams.setdefault(connection, []).append(stream)
            if cursor is not None:
                self._cursors[cursor] = stream
        return stream

    def stream_of(self, cursor: Any) -> Stream:
        """Return what was opened for a cursor."""
        return self._cursors.get(cursor) or Stream(self.end, None)

    def ends(self, event: str | None, connection: Any) -> None:
        """End what streams on a connection if `event` is the end of its transaction."""
        if event in {"commit", "rollback"}:
            self.finish(connection)

    def finish(self, connection: Any) -> None:
        """End what streams on a connection: its transaction is over, or it goes back to the pool."""
        if self._streams:
            for stream in self._streams.pop(connection, ()):
                stream.end()

    def observe(self, instance: Any, mixin: type) -> Any:
        """Give an object a subclass of its class that reports here; return the object."""
        try:
            kind = original_of(instance)
            observed = self._classes.get((kind, mixin))
            if observed is None:
                observed = self._classes[kind, mixin] = subclass(kind, mixin, self)
            instance.__class__ = observed
        except Exception as exc:  # noqa: BLE001 - as above
            self._fault("pool.observe", exc)
        return instance


class Observer(NamedTuple):
    """An app that is told about a pool."""

    db: DatabaseClient
    faults: Faults


class PoolWatch:
    """Who is told about one instrumented pool."""

    __slots__ = ("_known", "_targets", "name", "observers", "waiting")

    def __init__(self, name: str) -> None:
        self._known: WeakKeyDictionary[Any, Target] = WeakKeyDictionary()
        self._targets: dict[Address, Target] = {}
        self.name = name
        self.observers: tuple[Observer, ...] = ()
        self.waiting = 0

    def observer(self) -> Observer | None:
        """Return whom to tell now: the app whose request this is part of, else the first."""
        observers = self.observers
        if len(observers) > 1 and (exchange := current_exchange()) is not None:
            for observer in observers:
                if observer.db is exchange.observability.db:
                    return observer
        return observers[0] if observers else None

    def waited(self, seconds: float) -> None:
        """Take down how long a caller waited for a connection."""
        observer = self.observer()
        if observer is not None:
            try:
                observer.db.waited(self.name, seconds)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's query
                observer.faults("pool.waited", exc)

    def event(self, event: str) -> None:
        """Count what happened on a connection."""
        observer = self.observer()
        if observer is not None:
            try:
                observer.db.event(self.name, event)
            except Exception as exc:  # noqa: BLE001 - as above
                observer.faults("pool.event", exc)

    def lend(self, connection: Any, address: Callable[[Any], Address], mixin: type) -> None:
        """Have a connection report while it is out of the pool."""
        observer = self.observer()
        if observer is None:
            return
        try:
            target = self._known.get(connection)
            if target is None:
                target = self._known[connection] = self._target(address(connection))
            target.observe(connection, mixin)
        except Exception as exc:  # noqa: BLE001 - as above
            observer.faults("pool.lend", exc)

    def _target(self, at: Address) -> Target:
        if at not in self._targets and len(self._targets) >= MOST_TARGETS:
            at = (None, None, None)
        return self._targets.get(at) or self._targets.setdefault(at, Target(self, at))

    def take_back(self, connection: Any, in_transaction: Callable[[Any], bool]) -> None:
        """Have a connection be what it was; count the rollback that its pool does where a transaction is open."""
        observer, target = self.observer(), getattr(type(connection), "_observed_by", None)
        if observer is None or not isinstance(target, Target) or target.watch is not self:
            return
        try:
            try:
                target.finish(connection)
                if in_transaction(connection):
                    self.event("rollback")
            finally:
                connection.__class__ = original_of(connection)
        except Exception as exc:  # noqa: BLE001 - as above
            observer.faults("pool.take_back", exc)


def subclass(kind: type, mixin: type, observed_by: object) -> type:
    """Make the subclass of `kind` that does what `mixin` does differently; it looks like `kind` and is as large.

    The methods find what they override in `_unobserved`. `mixin` is no base of it: an object can only become one of a
    class whose one base is its own class, and which adds nothing to that.
    """
    methods = {name: method for name, method in vars(mixin).items() if name not in vars(_Nothing)}
    looks = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(
        kind.__name__, (kind,), {**methods, **looks, "__slots__": (), "_unobserved": kind, "_observed_by": observed_by}
    )


class _Nothing:
    """What every class has, with methods or without."""

    __slots__ = ()
    _unobserved: Any


def original_of(instance: Any) -> type:
    """Return the class that an object had before it was observed."""
    kind = type(instance)
    if isinstance(kind.__dict__.get("_observed_by"), Target | PoolWatch):
        return kind.__bases__[0]
    return kind


def install(  # noqa: PLR0913, PLR0917 - what instrumenting a pool takes
    db: DatabaseClient, pool: Any, mixin: type, read: Callable[[], PoolState], name: str, faults: Faults
) -> Callable[[], None]:
    """Have a pool report to `db`, unless it does; the result undoes that.

    The pool keeps the name that it got first. Its connections that are out then work on, and report nothing.
    """
    watch = getattr(type(pool), "_observed_by", None)
    if not isinstance(watch, PoolWatch):
        watch = PoolWatch(name)
    elif any(observer.db is db for observer in watch.observers):
        return lambda: None
    remove_pool = db.add_pool(watch.name, read)
    observer = Observer(db, faults)
    watch.observers = (*watch.observers, observer)
    if len(watch.observers) == 1:
        pool.__class__ = subclass(type(pool), mixin, watch)

    def undo() -> None:
        if observer in watch.observers:
            watch.observers = tuple(other for other in watch.observers if other is not observer)
            remove_pool()
            if not watch.observers:
                pool.__class__ = original_of(pool)

    return undo
