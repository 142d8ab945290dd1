"""`Observability`: the settings, the signals and the clients of one installed app; what `install` returns."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from opentelemetry import context as otel_context

from fastapi_observe import background
from fastapi_observe.clients.database.client import DatabaseClient
from fastapi_observe.clients.database.pools import instrument_pool
from fastapi_observe.clients.http.external import ExternalClient
from fastapi_observe.clients.http.httpx import HttpClients
from fastapi_observe.clients.http.propagation import Propagation
from fastapi_observe.export.counts import ExportCollector, counted
from fastapi_observe.internal.errors import Faults
from fastapi_observe.internal.forks import LAST_WORDS, shared_budget
from fastapi_observe.logs.service import Logs
from fastapi_observe.metrics.saturation import Saturation
from fastapi_observe.metrics.server import MetricsServer
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.system import SystemCollector
from fastapi_observe.records.guard import USERS, guarded, stand_in
from fastapi_observe.records.operation import Operation, new_operation
from fastapi_observe.records.request import CONTEXT_KEY, CURRENT_CONTEXT, Exchange
from fastapi_observe.records.signal import does_something
from fastapi_observe.records.time_breakdown import COUNTED, SHORTEST_WAIT, Work
from fastapi_observe.records.websocket import WebSocketExchange
from fastapi_observe.records.wrapping import name_of
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.requests.response_headers import Stamps
from fastapi_observe.requests.routing import Routes
from fastapi_observe.slo.live import Objectives
from fastapi_observe.traces.service import TracingService
from fastapi_observe.workers.join import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from fastapi_observe.export.push import MetricsPush
    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.logs.service import ObserveLogger
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.records.signal import Signal, Told
    from fastapi_observe.settings.model import ObserveSettings

C = TypeVar("C")

OPEN: list[Observability] = []
"""What is installed in this process and not closed; read by `current()` and `@traced`."""


class Observability:
    """Everything that `install` gave an app.

    `tracing`, `metrics` and `log` are what users call; `db` and `external` measure queries and calls; `http` is an
    httpx client that does it by itself.
    """

    def __init__(self, app: Starlette, settings: ObserveSettings) -> None:
        self.app = app
        self.settings = settings
        self.faults = Faults()
        self.routes = Routes(app)
        self.redactor = Redactor.of(settings, self.faults, self.routes.templates)
        self.objectives = Objectives(app, settings, self.faults)
        with ExitStack() as undo:  # what cannot be installed leaves nothing behind
            self.metrics = MetricsService(settings, self.faults, self.redactor.text)
            undo.callback(self.metrics.close)
            self.saturation = Saturation()
            self.metrics.add_reader(SystemCollector(settings, self.faults))
            self.metrics.add_reader(self.saturation)
            self.logs = Logs(settings, self.faults, self.redactor)
            undo.callback(self.logs.close)
            # last: a global provider cannot be taken back
            self.tracing = TracingService(settings, self.faults, self.redactor)
            undo.pop_all()
        self.db = DatabaseClient(self, self.redactor)
        self.external = ExternalClient(self, Propagation(settings.propagate_to, settings.propagate_baggage))
        self.clients = HttpClients(self.external, self.faults, self.redactor)
        signals: tuple[tuple[str, Signal, bool], ...] = (
            ("tracing", self.tracing, settings.tracing),
            ("metrics", self.metrics, settings.metrics),
            ("logs", self.logs, settings.logs),
        )
        self._signals = tuple((name, 1 << at, signal) for at, (name, signal, wanted) in enumerate(signals) if wanted)
        self._tells: tuple[Told, Told] | None = None
        self._stamps = Stamps(settings)
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []
        self.loop: Any = None
        self.closed = False
        self.workers = Workers(settings, self.faults, self.metrics.sharing, getattr(app, "title", ""))
        self.metrics_server = MetricsServer(settings, self.metrics.render, self.faults)
        self._pushes: list[ExportQueue | MetricsPush] = []
        if settings.otlp_logs or settings.otlp_metrics:
            from fastapi_observe.export.push import open_pushes  # noqa: PLC0415 - seldom wanted

            self._pushes = open_pushes(settings, self.tracing, self.metrics.sharing, self.logs, self.faults)
        self.metrics.add_reader(self.tracing.quota)
        self.metrics.add_reader(ExportCollector(counted(self.logs, self.tracing.provider, self._pushes)))
        self._budget = shared_budget(self.tracing.provider, *self._pushes)
        if settings.logs:
            self.logs.start()
        background.watch()
        OPEN.append(self)

    @property
    def log(self) -> ObserveLogger:
        """The logger: `log.info("...", order_id=7)`."""
        return self.logs.log

    # What the door calls

    def open(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        """Begin the record of a request and tell every signal."""
        kind = WebSocketExchange if scope["type"] == "websocket" else Exchange
        exchange = kind(scope, receive, send, self.faults, self._report)
        exchange.observability = self
        for name, bit, signal in self._tells[0] if self._tells else self._find_who_begins()[0]:
            try:
                signal.open_exchange(exchange)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                exchange.unopened |= bit
                self.faults(f"{name}.open_exchange", exc)
        try:
            self._stamps.put(exchange)
        except Exception as exc:  # noqa: BLE001 - what was opened must be closed
            self.faults("stamp", exc)
        if exchange.websocket or exchange.adopted:
            exchange.on_start = self._start
        if exchange.context is None:
            exchange.context = otel_context.set_value(CONTEXT_KEY, exchange.current)
        return exchange

    def _find_who_begins(self) -> tuple[Told, Told]:
        """Find which signals have something to do when a request begins, and when a piece of work begins."""
        self._tells = (
            tuple(told for told in self._signals if does_something(told[2].open_exchange)),
            tuple(told for told in self._signals if does_something(told[2].open_operation)),
        )
        return self._tells

    def _start(self, exchange: Exchange) -> None:
        self._find_endpoint(exchange)
        for name, bit, signal in self._signals:
            if not exchange.unopened & bit:
                try:
                    signal.start_exchange(exchange)
                except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                    self.faults(f"{name}.start_exchange", exc)

    def _report(self, exchange: Exchange) -> None:
        """Tell every signal that was opened how the request ended."""
        try:
            exchange.endpoint = self.routes.template(exchange.scope, exchange.status_code)
            if exchange.work is not None:
                exchange.work.sum_up()
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            self.faults("routing", exc)
        for name, bit, signal in self._signals:
            if not exchange.unopened & bit:
                try:
                    signal.close_exchange(exchange)
                except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                    self.faults(f"{name}.close_exchange", exc)

    def _find_endpoint(self, exchange: Exchange) -> None:
        try:
            exchange.endpoint = self.routes.template(exchange.scope, exchange.status_code)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            self.faults("routing", exc)

    # What the clients call

    def open_operation(self, operation: Operation) -> None:
        """Tell every signal that a piece of work begins."""
        try:
            if operation.kind in COUNTED and (operation.outer is None or not operation.is_part()):
                current = CURRENT_CONTEXT.get().get(CONTEXT_KEY)
                exchange: Exchange | None = None if current is None else current.exchange  # type: ignore[attr-defined]
                if exchange is not None and not exchange.complete:
                    operation.work = exchange.work or self._new_work(exchange)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            self.faults("work", exc)
        for name, _, signal in self._tells[1] if self._tells else self._find_who_begins()[1]:
            try:
                signal.open_operation(operation)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.faults(f"{name}.open_operation", exc)
        if operation.work is not None:
            operation.work.begin(perf_counter())

    def close_operation(self, operation: Operation) -> None:
        """Tell every signal how a piece of work ended."""
        work = operation.work
        if work is not None:
            try:
                duration = operation.duration
                work.end(operation.started + duration, operation.kind, duration, operation.repeats)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.faults("work", exc)
        for name, _, signal in reversed(self._signals):
            try:
                signal.close_operation(operation)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.faults(f"{name}.close_operation", exc)

    def _new_work(self, exchange: Exchange) -> Work:
        with self._lock:  # two threads may begin the first work of a request
            exchange.work = exchange.work or Work()
        return exchange.work

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool of database connections, read at each scrape; call the result to show it no more."""
        return self.metrics.add_pool(name, read)

    def waited_for_connection(self, pool: str, seconds: float) -> None:
        """Take down how long somebody waited for a connection of `pool`; a request that did says so."""
        current = CURRENT_CONTEXT.get().get(CONTEXT_KEY) if seconds >= SHORTEST_WAIT else None
        exchange: Exchange | None = None if current is None else current.exchange  # type: ignore[attr-defined]
        if exchange is not None and not exchange.complete:
            (exchange.work or self._new_work(exchange)).waited(perf_counter(), seconds)
        if self.settings.metrics:
            self.metrics.waited_for_connection(pool, seconds)

    def connection_event(self, pool: str, event: str) -> None:
        """Count what happened with a connection of `pool` besides statements: `begin`, `commit`, `timeout` ..."""
        if self.settings.metrics:
            self.metrics.connection_event(pool, event)

    def background(self, exchange: Exchange, function: Any) -> Operation:
        """Measure one background task of a request."""
        if not exchange.reported:
            self._find_endpoint(exchange)
        name = name_of(function)
        return Operation(
            self, "background", f"background {name}", {"endpoint": exchange.endpoint}, {"code.function.name": name}
        )

    # What users call

    @guarded("operation", stand_in, USERS)
    def operation(self, name: str, /, **details: Any) -> Operation:
        """Measure a piece of the user's own work: `with observe.operation("charge card", provider="acme") as op:`.

        Also `async with`, and as a decorator. `name` is the metric label (`operations_total`,
        `operation_duration_seconds`) and the span's name, so it must be one of few; `details`, and what
        `op.detail(...)` adds, go to the span and to the line of a failure only. Raises `ValueError` for an empty name,
        `TypeError` for one that is no text.
        """
        return new_operation(self, name, details)

    @property
    def http(self) -> httpx.AsyncClient:
        """An `httpx.AsyncClient`, one for each event loop, closed at shutdown: calls are measured and traced."""
        return self.clients.shared(_running_loop())

    def http_client(
        self,
        service: str | None = None,
        templates: Iterable[str] = (),
        *,
        propagate: bool | None = None,
        **options: Any,
    ) -> httpx.AsyncClient:
        """Return a new observed `httpx.AsyncClient`; closed at shutdown unless you close it before.

        `service`, `templates` and `propagate` as in `instrument_client`; `options` are httpx's own.
        """
        return self.clients.new(service, templates, propagate=propagate, **options)

    def instrument_client(
        self, client: C, service: str | None = None, templates: Iterable[str] = (), *, propagate: bool | None = None
    ) -> C:
        """Measure every call of an `httpx` or `httpx2` client, sync or async, until `close`; return the client.

        `service` is the metric label and the span's `peer.service` (default: the host). `templates`
        (`["/invoices/{id}"]`) name calls by their path; `extensions={"template": "/invoices/{id}"}` names one call.
        `propagate` says whether its hosts may know the trace (default: private ones and those of `propagate_to`).
        Raises `TypeError` for what is no such client, `ValueError` for what is no template.
        """
        return self.clients.instrument(client, service, templates, propagate=propagate)

    def instrument_engine(self, engine: Any, *, pool_name: str | None = None) -> None:
        """Measure every statement of an SQLAlchemy engine, sync or async, and show its pool, until `close`.

        `pool_name` is the label of the pool. Again for the same engine does nothing. Raises `TypeError` for what is no
        engine.
        """
        from fastapi_observe.clients.database.sqlalchemy import instrument_engine  # noqa: PLC0415 - SQLAlchemy is an extra

        self.on_close(instrument_engine(self.db, engine, pool_name=pool_name, faults=self.faults))

    def instrument_pool(self, pool: Any, *, pool_name: str | None = None) -> None:
        """Measure every query of an `asyncpg` or `psycopg_pool` pool, and show the pool, until `close`.

        `pool_name` is the label of the pool. Again for the same pool does nothing. Raises `TypeError` for what is none.
        """
        self.on_close(instrument_pool(self.db, pool, pool_name=pool_name, faults=self.faults))

    # Lifetime

    def started(self) -> None:
        """Begin what needs the running event loop; again after a restart in another loop."""
        self._budget.renew()
        open_port = partial(self.metrics_server.start, shared=self.workers.are_several)
        resolve = partial(self.objectives.start, self.metrics)
        steps: list[Callable[[], object]] = [resolve, self.workers.start, self.objectives.watch, open_port]
        steps += [push.start for push in self._pushes if hasattr(push, "start")]
        loop = _running_loop()
        if loop is not None and loop is not self.loop:
            self.loop = loop
            steps.append(partial(self.saturation.start, loop))
            if self.settings.logs:
                steps.append(self.logs.start)  # whatever was configured since `install` is taken over now
        self.faults.each("start", *steps)

    async def stop(self) -> None:
        """Close the clients and flush every signal, within two seconds; what was installed stays installed."""
        self.faults.each("stop", self.saturation.stop, self.objectives.stop)
        self.loop = None
        try:
            await self.clients.close()
        except Exception as exc:  # noqa: BLE001 - as above
            self.faults("stop", exc)
        deadline = monotonic() + self._budget.begin(self.settings.shutdown_timeout)
        thread = threading.Thread(target=self.flush, name="fastapi-observe-flush", daemon=True)
        thread.start()
        while thread.is_alive() and monotonic() < deadline:  # noqa: ASYNC110 - a thread sets no event of a loop
            await anyio.sleep(0.005)
        self.faults.each("stop", self.metrics_server.stop, partial(self.logs.flush, LAST_WORDS))
        pauses = [push.pause for push in self._pushes if hasattr(push, "pause")]
        self.faults.each("stop", *pauses, self.workers.stop)

    def flush(self, timeout: float | None = None) -> None:
        """Write and export what is waiting, for at most `timeout` seconds in all (default: `shutdown_timeout`)."""
        deadline = monotonic() + (self.settings.shutdown_timeout if timeout is None else timeout)
        pushes = [("push.flush", push.flush) for push in self._pushes]
        for site, flush in (("logs.flush", self.logs.flush), ("tracing.flush", self.tracing.flush), *pushes):
            self.faults.each(site, partial(flush, max(0.0, deadline - monotonic())))

    def on_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called by `close`."""
        self._undo.append(undo)

    def close(self) -> None:
        """Uninstall: the app is as it was, our threads have ended. A second call does nothing.

        Spans that a collector does not take within two seconds are given up.
        """
        if self.closed:
            return
        self.closed = True
        OPEN.remove(self)
        background.unwatch()
        closes = (
            self.objectives.stop,
            self.clients.restore,
            self.saturation.close,
            self._end_within_budget,
            self.metrics_server.stop,
            self.workers.stop,
            self.metrics.close,
            self.logs.close,
        )
        self.faults.each("close", *reversed(self._undo), *closes)

    def _end_within_budget(self) -> None:
        deadline = monotonic() + self.settings.shutdown_timeout

        def end() -> None:
            self.flush()
            for push in self._pushes:
                self.faults.each("close", partial(push.close, max(0.0, deadline - monotonic())))
            self.faults.each("close", self.tracing.close)

        thread = threading.Thread(target=end, name="fastapi-observe-close", daemon=True)
        thread.start()
        thread.join(self.settings.shutdown_timeout)


def _running_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # no loop here, or trio's
        return None
