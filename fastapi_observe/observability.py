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
from fastapi_observe.clients.http.propagation import PropagationPolicy
from fastapi_observe.export.counts import ExportCollector, line_counts
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.forks import FINAL_LOG_FLUSH, share_deadline
from fastapi_observe.logs.service import LogService
from fastapi_observe.metrics.saturation import Saturation
from fastapi_observe.metrics.server import MetricsServer
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.system import SystemCollector
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, return_no_op
from fastapi_observe.records.operation import Operation, new_operation
from fastapi_observe.records.request import CONTEXT_KEY, OTEL_CONTEXT, RequestRecord
from fastapi_observe.records.signal import is_implemented
from fastapi_observe.records.time_breakdown import AWAITED_KINDS, MIN_POOL_WAIT, TimeBreakdown
from fastapi_observe.records.websocket import WebSocketRecord
from fastapi_observe.records.wrapping import callable_name
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.requests.response_headers import ResponseHeaders
from fastapi_observe.requests.routing import RouteTemplates
from fastapi_observe.slo.live import LiveObjectives
from fastapi_observe.traces.service import TracingService
from fastapi_observe.workers.join import WorkerGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import httpx
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.export.push import MetricExportLoop
    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.logs.service import ObserveLogger
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.records.signal import Signal, SignalHook
    from fastapi_observe.settings.model import ObserveSettings

C = TypeVar("C")

INSTALLED: list[Observability] = []
"""What is installed in this process and not closed; read by `get_observability()` and `@traced`."""


class Observability:
    """Everything that `install` gave an app.

    `tracing`, `metrics` and `log` are what users call; `db` and `external` measure queries and calls; `http` is an
    httpx client that does it by itself.
    """

    def __init__(self, app: Starlette, settings: ObserveSettings) -> None:
        self.app = app
        self.settings = settings
        self.internal_errors = InternalErrors()
        self.routes = RouteTemplates(app)
        self.redactor = Redactor.from_settings(settings, self.internal_errors, self.routes.templates)
        self.objectives = LiveObjectives(app, settings, self.internal_errors)
        with ExitStack() as undo:  # what cannot be installed leaves nothing behind
            self.metrics = MetricsService(settings, self.internal_errors, self.redactor.text)
            undo.callback(self.metrics.close)
            self.saturation = Saturation()
            self.metrics.register_collector(SystemCollector(settings, self.internal_errors))
            self.metrics.register_collector(self.saturation)
            self.logs = LogService(settings, self.internal_errors, self.redactor)
            undo.callback(self.logs.close)
            # last: a global provider cannot be taken back
            self.tracing = TracingService(settings, self.internal_errors, self.redactor)
            undo.pop_all()
        self.db = DatabaseClient(self, self.redactor)
        self.external = ExternalClient(self, PropagationPolicy(settings.propagate_to, settings.propagate_baggage))
        self.http_clients = HttpClients(self.external, self.internal_errors, self.redactor)
        signals: tuple[tuple[str, Signal, bool], ...] = (
            ("traces", self.tracing, settings.tracing),
            ("metrics", self.metrics, settings.metrics),
            ("logs", self.logs, settings.logs),
        )
        self._signals = tuple((name, 1 << at, signal) for at, (name, signal, wanted) in enumerate(signals) if wanted)
        self._active_signals: tuple[SignalHook, SignalHook] | None = None
        self._stamps = ResponseHeaders(settings)
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []
        self.loop: Any = None
        self.closed = False
        self.workers = WorkerGroup(settings, self.internal_errors, self.metrics.sharing, getattr(app, "title", ""))
        self.metrics_server = MetricsServer(settings, self.metrics.render, self.internal_errors)
        self._pushes: list[ExportQueue | MetricExportLoop] = []
        if settings.otlp_logs or settings.otlp_metrics:
            from fastapi_observe.export.push import open_queues  # noqa: PLC0415 - seldom wanted

            sharing = self.metrics.sharing
            queues = open_queues(
                settings,
                self.tracing.provider,
                sharing.of_this_process,
                sharing.counters_reset_at,
                self.internal_errors,
            )
            if queues.logs is not None:
                self.logs.push = queues.logs.put
            self._pushes = [queue for queue in queues if queue is not None]
        self.metrics.register_collector(self.tracing.rate_limit)
        self.metrics.register_collector(ExportCollector(self._export_counts()))
        self._budget = share_deadline(self.tracing.provider, *self._pushes)
        if settings.logs:
            self.logs.start()
        background.instrument()
        INSTALLED.append(self)

    def _export_counts(self) -> Iterator[tuple[str, Callable[[], Counts]]]:
        yield "logs", line_counts(self.logs.tally)
        if self.logs.file_tally() is not None:
            yield "log_file", line_counts(self.logs.file_tally)
        queue = getattr(self.tracing.provider, "queue", None)
        if queue is not None:
            yield "traces", queue.counts
        for push in self._pushes:
            yield "otlp_metrics" if hasattr(push, "push") else "otlp_logs", push.counts

    @property
    def log(self) -> ObserveLogger:
        """The logger: `log.info("...", order_id=7)`."""
        return self.logs.log

    # What the door calls

    def start_request(self, scope: Scope, receive: Receive, send: Send) -> RequestRecord:
        """Begin the record of a request and tell every signal."""
        kind = WebSocketRecord if scope["type"] == "websocket" else RequestRecord
        exchange = kind(scope, receive, send, self.internal_errors, self._end_request)
        exchange.observability = self
        for name, bit, signal in self._active_signals[0] if self._active_signals else self._find_active_signals()[0]:
            try:
                signal.on_request_start(exchange)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                exchange.failed_signals |= bit
                self.internal_errors(f"{name}.on_request_start", exc)
        try:
            self._stamps.prepare(exchange)
        except Exception as exc:  # noqa: BLE001 - what was opened must be closed
            self.internal_errors("response_headers", exc)
        if exchange.websocket or exchange.span_adopted:
            exchange.on_response_start = self._start_response
        if exchange.context is None:
            exchange.context = otel_context.set_value(CONTEXT_KEY, exchange.current)
        return exchange

    def _find_active_signals(self) -> tuple[SignalHook, SignalHook]:
        """Find which signals have something to do when a request begins, and when a piece of work begins."""
        self._active_signals = (
            tuple(told for told in self._signals if is_implemented(told[2].on_request_start)),
            tuple(told for told in self._signals if is_implemented(told[2].on_operation_start)),
        )
        return self._active_signals

    def _start_response(self, exchange: RequestRecord) -> None:
        self._find_endpoint(exchange)
        for name, bit, signal in self._signals:
            if not exchange.failed_signals & bit:
                try:
                    signal.on_response_start(exchange)
                except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                    self.internal_errors(f"{name}.on_response_start", exc)

    def _end_request(self, exchange: RequestRecord) -> None:
        """Tell every signal that was opened how the request ended."""
        try:
            exchange.endpoint = self.routes.template(exchange.scope, exchange.status_code)
            if exchange.work is not None:
                exchange.work.aggregate()
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            self.internal_errors("routing", exc)
        for name, bit, signal in self._signals:
            if not exchange.failed_signals & bit:
                try:
                    signal.on_request_end(exchange)
                except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
                    self.internal_errors(f"{name}.on_request_end", exc)

    def _find_endpoint(self, exchange: RequestRecord) -> None:
        try:
            exchange.endpoint = self.routes.template(exchange.scope, exchange.status_code)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            self.internal_errors("routing", exc)

    # What the clients call

    def on_operation_start(self, operation: Operation) -> None:
        """Tell every signal that a piece of work begins."""
        try:
            if operation.kind in AWAITED_KINDS and (operation.parent is None or not operation.is_nested()):
                current = OTEL_CONTEXT.get().get(CONTEXT_KEY)
                exchange: RequestRecord | None = None if current is None else current.exchange  # type: ignore[attr-defined]
                if exchange is not None and not exchange.complete:
                    operation.work = exchange.work or self._new_work(exchange)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            self.internal_errors("work", exc)
        for name, _, signal in self._active_signals[1] if self._active_signals else self._find_active_signals()[1]:
            try:
                signal.on_operation_start(operation)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.internal_errors(f"{name}.on_operation_start", exc)
        if operation.work is not None:
            operation.work.begin(perf_counter())

    def on_operation_end(self, operation: Operation) -> None:
        """Tell every signal how a piece of work ended."""
        work = operation.work
        if work is not None:
            try:
                duration = operation.duration
                work.end(operation.started + duration, operation.kind, duration, operation.repetition_key)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.internal_errors("work", exc)
        for name, _, signal in reversed(self._signals):
            try:
                signal.on_operation_end(operation)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
                self.internal_errors(f"{name}.on_operation_end", exc)

    def _new_work(self, exchange: RequestRecord) -> TimeBreakdown:
        with self._lock:  # two threads may begin the first work of a request
            exchange.work = exchange.work or TimeBreakdown()
        return exchange.work

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool of database connections, read at each scrape; call the result to show it no more."""
        return self.metrics.add_pool(name, read)

    def waited_for_connection(self, pool: str, seconds: float) -> None:
        """Take down how long somebody waited for a connection of `pool`; a request that did says so."""
        current = OTEL_CONTEXT.get().get(CONTEXT_KEY) if seconds >= MIN_POOL_WAIT else None
        exchange: RequestRecord | None = None if current is None else current.exchange  # type: ignore[attr-defined]
        if exchange is not None and not exchange.complete:
            (exchange.work or self._new_work(exchange)).waited(perf_counter(), seconds)
        if self.settings.metrics:
            self.metrics.record_connection_wait(pool, seconds)

    def connection_event(self, pool: str, event: str) -> None:
        """Count what happened with a connection of `pool` besides statements: `begin`, `commit`, `timeout` ..."""
        if self.settings.metrics:
            self.metrics.record_connection_event(pool, event)

    def background_operation(self, exchange: RequestRecord, function: Any) -> Operation:
        """Measure one background task of a request."""
        if not exchange.reported:
            self._find_endpoint(exchange)
        name = callable_name(function)
        return Operation(
            self, "background", f"background {name}", {"endpoint": exchange.endpoint}, {"code.function.name": name}
        )

    # What users call

    @fail_safe("operation", return_no_op, CALLER_ERRORS)
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
        return self.http_clients.shared(_running_loop())

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
        return self.http_clients.new(service, templates, propagate=propagate, **options)

    def instrument_client(
        self, client: C, service: str | None = None, templates: Iterable[str] = (), *, propagate: bool | None = None
    ) -> C:
        """Measure every call of an `httpx` or `httpx2` client, sync or async, until `close`; return the client.

        `service` is the metric label and the span's `peer.service` (default: the host). `templates`
        (`["/invoices/{id}"]`) name calls by their path; `extensions={"template": "/invoices/{id}"}` names one call.
        `propagate` says whether its hosts may know the trace (default: private ones and those of `propagate_to`).
        Raises `TypeError` for what is no such client, `ValueError` for what is no template.
        """
        return self.http_clients.instrument(client, service, templates, propagate=propagate)

    def instrument_engine(self, engine: Any, *, pool_name: str | None = None) -> None:
        """Measure every statement of an SQLAlchemy engine, sync or async, and show its pool, until `close`.

        `pool_name` is the label of the pool. Again for the same engine does nothing. Raises `TypeError` for what is no
        engine.
        """
        from fastapi_observe.clients.database.sqlalchemy import instrument_engine  # noqa: PLC0415 - SQLAlchemy is an extra

        self.on_close(instrument_engine(self.db, engine, pool_name=pool_name, faults=self.internal_errors))

    def instrument_pool(self, pool: Any, *, pool_name: str | None = None) -> None:
        """Measure every query of an `asyncpg` or `psycopg_pool` pool, and show the pool, until `close`.

        `pool_name` is the label of the pool. Again for the same pool does nothing. Raises `TypeError` for what is none.
        """
        self.on_close(instrument_pool(self.db, pool, pool_name=pool_name, faults=self.internal_errors))

    # Lifetime

    def on_startup(self) -> None:
        """Begin what needs the running event loop; again after a restart in another loop."""
        self._budget.reset()
        open_port = partial(self.metrics_server.start, shared=self.workers.is_multiprocess)
        resolve = partial(self.objectives.start, self.metrics)
        steps: list[Callable[[], object]] = [resolve, self.workers.start, self.objectives.watch, open_port]
        steps += [push.start for push in self._pushes if hasattr(push, "start")]
        loop = _running_loop()
        if loop is not None and loop is not self.loop:
            self.loop = loop
            steps.append(partial(self.saturation.start, loop))
            if self.settings.logs:
                steps.append(self.logs.start)  # whatever was configured since `install` is taken over now
        self.internal_errors.run_each("start", *steps)

    async def on_shutdown(self) -> None:
        """Close the clients and flush every signal, within two seconds; what was installed stays installed."""
        self.internal_errors.run_each("stop", self.saturation.stop, self.objectives.stop)
        self.loop = None
        try:
            await self.http_clients.close()
        except Exception as exc:  # noqa: BLE001 - as above
            self.internal_errors("stop", exc)
        deadline = monotonic() + self._budget.remaining(self.settings.shutdown_timeout)
        thread = threading.Thread(target=self.flush, name="fastapi-observe-flush", daemon=True)
        thread.start()
        while thread.is_alive() and monotonic() < deadline:  # noqa: ASYNC110 - a thread sets no event of a loop
            await anyio.sleep(0.005)
        self.internal_errors.run_each("stop", self.metrics_server.stop, partial(self.logs.flush, FINAL_LOG_FLUSH))
        pauses = [push.pause for push in self._pushes if hasattr(push, "pause")]
        self.internal_errors.run_each("stop", *pauses, self.workers.stop)

    def flush(self, timeout: float | None = None) -> None:
        """Write and export what is waiting, for at most `timeout` seconds in all (default: `shutdown_timeout`)."""
        deadline = monotonic() + (self.settings.shutdown_timeout if timeout is None else timeout)
        pushes = [("push.flush", push.flush) for push in self._pushes]
        for site, flush in (("logs.flush", self.logs.flush), ("traces.flush", self.tracing.flush), *pushes):
            self.internal_errors.run_each(site, partial(flush, max(0.0, deadline - monotonic())))

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
        INSTALLED.remove(self)
        background.uninstrument()
        closes = (
            self.objectives.stop,
            self.http_clients.restore,
            self.saturation.close,
            self._end_within_budget,
            self.metrics_server.stop,
            self.workers.stop,
            self.metrics.close,
            self.logs.close,
        )
        self.internal_errors.run_each("close", *reversed(self._undo), *closes)

    def _end_within_budget(self) -> None:
        deadline = monotonic() + self.settings.shutdown_timeout

        def end() -> None:
            self.flush()
            for push in self._pushes:
                self.internal_errors.run_each("close", partial(push.close, max(0.0, deadline - monotonic())))
            self.internal_errors.run_each("close", self.tracing.close)

        thread = threading.Thread(target=end, name="fastapi-observe-close", daemon=True)
        thread.start()
        thread.join(self.settings.shutdown_timeout)


def _running_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # no loop here, or trio's
        return None
