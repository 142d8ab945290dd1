"""`Observability`: the settings, signals and clients of one installed app, returned by `install`."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio
from opentelemetry import context as otel_context

from fastapi_observe import background
from fastapi_observe.clients.database.client import DatabaseClient
from fastapi_observe.clients.database.pools import instrument_pool
from fastapi_observe.clients.http.external import ExternalClient
from fastapi_observe.clients.http.httpx import HttpClients
from fastapi_observe.clients.http.propagation import PropagationPolicy
from fastapi_observe.detached import DetachedScope
from fastapi_observe.export.counts import ExportCollector
from fastapi_observe.instrumentors.calls import supersede_outer
from fastapi_observe.instrumentors.switch import Instrumentors
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.forks import FINAL_LOG_FLUSH, ShutdownDeadline, register_at_exit, start_thread
from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.jobs import HeaderReader, Job, new_job
from fastapi_observe.logs.service import LogService
from fastapi_observe.metrics.loop_monitor import BlockedLoopReport
from fastapi_observe.metrics.saturation import Saturation, running_loop
from fastapi_observe.metrics.server import MetricsServer
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.shared.join import WorkerGroup
from fastapi_observe.metrics.system import SystemCollector
from fastapi_observe.records.fields import FieldSetter
from fastapi_observe.records.frames import OwnCode, calling_module
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, return_no_op
from fastapi_observe.records.operation import Operation, PartialReporter, new_operation
from fastapi_observe.records.request import CONTEXT_KEY, ExcludedRef, RequestRecord, excluded_signals
from fastapi_observe.records.signal import SIGNAL_BITS, SignalHook, is_implemented
from fastapi_observe.records.time_breakdown import AWAITED_KINDS, MIN_POOL_WAIT, PoolWait, TimeBreakdown
from fastapi_observe.records.websocket import WebSocketRecord
from fastapi_observe.records.wrapping import callable_name
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.requests.exclusion import RequestFilter
from fastapi_observe.requests.response_headers import ResponseHeaders
from fastapi_observe.requests.routing import RouteTemplates, app_modules
from fastapi_observe.slo.live import LiveObjectives
from fastapi_observe.traces.choice import make_tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import httpx
    from opentelemetry.context import Context
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.export.push import MetricExportLoop
    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.jobs import MessageHeaders
    from fastapi_observe.logs.service import ObserveLogger
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.records.signal import Signal
    from fastapi_observe.settings.model import ObserveSettings

C = TypeVar("C")

INSTALLED: list[Observability] = []
"""The installs of this process that are not closed, read by `get_observability()` and `@traced`."""


class Observability:
    """The traces, metrics, logs and instrumented clients of an app.

    `tracing`, `metrics` and `log` record telemetry, `db` and `external` queries and calls; `http` is an httpx client.
    """

    # Installs with a filter or with instrumentors. An operation may be of another install than the one of its request.
    inspecting: ClassVar = 0

    def __init__(self, app: Starlette, settings: ObserveSettings) -> None:  # noqa: PLR0915 - one statement for each part
        self.app = app
        self.settings = settings
        self.internal_errors = InternalErrors()
        self.routes = RouteTemplates(app)
        self.own_code = OwnCode(partial(app_modules, app, calling_module()))
        self.redactor = Redactor.from_settings(settings, self.internal_errors, self.routes.templates)
        self.objectives = LiveObjectives(app, settings, self.internal_errors)
        with ExitStack() as undo:  # a failed install leaves nothing behind
            self.metrics = MetricsService(settings, self.internal_errors, self.redactor.text)
            undo.callback(self.metrics.close)
            self.blocked_loops = BlockedLoopReport(
                self.routes.template, self.metrics.record_blocked_loop if settings.metrics else None
            )
            self.saturation = Saturation(
                blocked_threshold=settings.blocked_loop_threshold,
                on_blocked=self.blocked_loops,
                in_progress=lambda: self.metrics.requests_in_progress if settings.metrics else 0,
                own_code=self.own_code,
            )
            self.metrics.register_collector(SystemCollector(settings, self.internal_errors))
            self.metrics.register_collector(self.saturation)
            self.logs = LogService(settings, self.internal_errors, self.redactor)
            undo.callback(self.logs.close)
            self.tracing = make_tracing(settings, self.internal_errors, self.redactor)
            undo.pop_all()
        self.db = DatabaseClient(self, self.redactor)
        self.external = ExternalClient(self, PropagationPolicy(settings.propagate_to, settings.propagate_baggage))
        self.instrumentors = Instrumentors()
        self.http_clients = HttpClients(self.external, self.internal_errors, self.redactor)
        signals: tuple[tuple[str, Signal, bool], ...] = (
            ("traces", self.tracing, settings.tracing),
            ("metrics", self.metrics, settings.metrics),
            ("logs", self.logs, settings.logs),
        )
        self._signals = tuple(
            SignalHook(name, SIGNAL_BITS[name], signal) for name, signal, enabled in signals if enabled
        )
        self.all_signals = sum(hook.bit for hook in self._signals)
        self.filter = RequestFilter.from_settings(settings)
        Observability.inspecting += bool(self.filter)
        # The signals that handle the start of a request, the start of an operation, and its end.
        self._active_signals: tuple[tuple[SignalHook, ...], ...] | None = None
        self._response_headers = ResponseHeaders(settings)
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []
        self.startup_steps: list[Callable[[], object]] = []
        self.shutdown_steps: list[Callable[[], object]] = []
        self.read_headers = HeaderReader()
        self._fields = FieldSetter(self.redactor, self.tracing.use_fields)
        self.before_job: Callable[[], object] | None = None
        self.loop: Any = None
        self.closed = self.logged_access = False
        self.workers = WorkerGroup(settings, self.internal_errors, self.metrics.sharing, getattr(app, "title", ""))
        self.metrics_server = MetricsServer(settings, self.metrics.render, self.internal_errors)
        self._log_queue: ExportQueue | None = None
        self._metric_loop: MetricExportLoop | None = None
        if settings.otlp_logs or settings.otlp_metrics:
            from fastapi_observe.export.push import open_queues  # noqa: PLC0415 - rarely used

            sharing = self.metrics.sharing
            self._log_queue, self._metric_loop = open_queues(
                settings,
                self.tracing.provider,
                sharing.local_collectors,
                sharing.counters_reset_at,
                self.internal_errors,
            )
            if self._log_queue is not None:
                self.logs.push = self._log_queue.put
        self._pushes = [push for push in (self._log_queue, self._metric_loop) if push is not None]
        self.metrics.register_collector(self.tracing.rate_limit)
        if self.tracing.tail_sampler is not None:
            self.tracing.tail_sampler.slow_requests = self.objectives.latency_thresholds
            self.metrics.register_collector(self.tracing.tail_sampler)
        self.metrics.register_collector(ExportCollector(self.export_counts()))
        self._shutdown_deadline = ShutdownDeadline()
        for queue in self._export_queues().values():
            queue.shutdown_deadline = self._shutdown_deadline
        if settings.logs:
            self.logs.start()
        background.instrument()
        self.tracing.offer_provider()
        INSTALLED.append(self)

    def add_signal(self, name: str, signal: Signal) -> None:
        """Report to one more signal, the last one. Must be called before the first request."""
        self._signals += (SignalHook(name, SIGNAL_BITS[name], signal),)

    def export_counts(self) -> Iterator[tuple[str, Callable[[], Counts]]]:
        """Yield each exported signal with a function that returns its counts."""
        yield from self.logs.export_counts()
        for signal, queue in self._export_queues().items():
            yield signal, queue.counts

    def _export_queues(self) -> dict[str, ExportQueue]:
        loop = self._metric_loop
        queues: dict[str, ExportQueue | None] = {
            "traces": getattr(self.tracing.provider, "queue", None),  # a user's provider has none
            "otlp_logs": self._log_queue,
            "otlp_metrics": None if loop is None else loop.queue,
        }
        return {signal: queue for signal, queue in queues.items() if queue is not None}

    @property
    def log(self) -> ObserveLogger:
        """The logger: `log.info("...", order_id=7)`."""
        return self.logs.log

    # Called by the middleware

    def exclude_request(self) -> Context:
        """Return the context for a request that no signal reports."""
        return self.tracing.exclude(ExcludedRef(None, self.all_signals))[0]

    def start_request(self, scope: Scope, receive: Receive, send: Send, excluded: int = 0) -> RequestRecord:
        """Create the record of a request and report its start to the signals that are not `excluded`."""
        record_class = WebSocketRecord if scope["type"] == "websocket" else RequestRecord
        record = record_class(scope, receive, send, self.internal_errors, self._end_request)
        record.observability = self
        hooks = self._active_signals[0] if self._active_signals else self._find_active_signals()[0]
        if excluded:
            hooks = self._exclude_signals(record, hooks, excluded)
        for hook in hooks:
            try:
                hook.signal.on_request_start(record)
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
                record.skipped_signals |= hook.bit
                self.internal_errors(f"{hook.name}.on_request_start", exc)
        try:
            self._response_headers.prepare(record)
        except Exception as exc:  # noqa: BLE001 - every signal that was started is ended
            self.internal_errors("response_headers", exc)
        if record.websocket or record.span_adopted:
            record.on_response_start = self._start_response
        if record.context is None:
            record.context = otel_context.set_value(CONTEXT_KEY, record.current)
        return record

    def _exclude_signals(
        self, record: RequestRecord, hooks: tuple[SignalHook, ...], excluded: int
    ) -> tuple[SignalHook, ...]:
        """Prepare a record that some signals do not report. Returns the hooks of the others."""
        record.skipped_signals = excluded
        record.current = ExcludedRef(record, excluded)
        if excluded & SIGNAL_BITS["traces"]:
            record.context, span = self.tracing.exclude(record.current)
            position = span.get_span_context()
            record.span = span
            record.trace_id, record.span_id = f"{position.trace_id:032x}", f"{position.span_id:016x}"
        return tuple(hook for hook in hooks if not hook.bit & excluded)

    def _find_active_signals(self) -> tuple[tuple[SignalHook, ...], ...]:
        # At the first request, not in __init__: methods of a signal may be replaced until then.
        self._active_signals = (
            tuple(hook for hook in self._signals if is_implemented(hook.signal.on_request_start)),
            tuple(hook for hook in self._signals if is_implemented(hook.signal.on_operation_start)),
            self._signals[::-1],
        )
        return self._active_signals

    def _start_response(self, record: RequestRecord) -> None:
        self._find_endpoint(record)
        for hook in self._signals:
            if not record.skipped_signals & hook.bit:
                try:
                    hook.signal.on_response_start(record)
                except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
                    self.internal_errors(f"{hook.name}.on_response_start", exc)

    def _end_request(self, record: RequestRecord) -> None:
        """Report the end of a request to every signal whose start did not fail."""
        try:
            record.endpoint = self.routes.template(record.scope, record.status_code)
            if record.work is not None:
                record.work.aggregate(record.started + record.duration)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
            self.internal_errors("routing", exc)
        skipped = record.skipped_signals
        for hook in self._signals:
            if not skipped & hook.bit:
                try:
                    hook.signal.on_request_end(record)
                except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
                    self.internal_errors(f"{hook.name}.on_request_end", exc)

    def start_job(self, record: JobRecord) -> None:
        """Report the start of a job to every signal."""
        record.observability = self
        for hook in self._signals:
            try:
                hook.signal.on_job_start(record)
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
                record.skipped_signals |= hook.bit
                self.internal_errors(f"{hook.name}.on_job_start", exc)
        if record.context is None:
            record.context = otel_context.set_value(CONTEXT_KEY, record.current)

    def end_job(self, record: JobRecord) -> None:
        """Report the end of a job to every signal whose start did not fail."""
        if record.work is not None:
            record.work.aggregate(record.started + record.duration)
        for hook in self._signals:
            if not record.skipped_signals & hook.bit:
                try:
                    hook.signal.on_job_end(record)
                except Exception as exc:  # noqa: BLE001 - as above
                    self.internal_errors(f"{hook.name}.on_job_end", exc)

    def _find_endpoint(self, record: RequestRecord) -> None:
        try:
            record.endpoint = self.routes.template(record.scope, record.status_code)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
            self.internal_errors("routing", exc)

    # Called by operations and clients

    def on_operation_start(self, operation: Operation) -> None:
        """Report the start of an operation to the signals, and record it in the time breakdown of the request."""
        try:
            if operation.kind in AWAITED_KINDS and (operation.parent is None or not operation.is_nested()):
                reference = current_context().get(CONTEXT_KEY)
                record: RequestRecord | None = None if reference is None else reference.record  # type: ignore[attr-defined]
                if record is not None and not record.complete:
                    (record.work or self._new_work(record)).add(operation)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            self.internal_errors("time_breakdown", exc)
        hooks = self._active_signals[1] if self._active_signals else self._find_active_signals()[1]
        if Observability.inspecting:
            hooks = self._included(operation, hooks)
        for hook in hooks:
            try:
                hook.signal.on_operation_start(operation)
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
                self.internal_errors(f"{hook.name}.on_operation_start", exc)

    def _included(self, operation: Operation, hooks: tuple[SignalHook, ...]) -> tuple[SignalHook, ...]:
        """Return the hooks of the signals that report an operation, and remember them for its end."""
        supersede_outer(operation)
        excluded = excluded_signals(current_context())
        if not excluded:
            return hooks
        operation.reporter = PartialReporter(self, excluded)
        return tuple(hook for hook in hooks if not hook.bit & excluded)

    def on_operation_end(self, operation: Operation, excluded: int = 0) -> None:
        """Report the end of an operation to the signals that are not `excluded`."""
        hooks = self._active_signals[2] if self._active_signals else self._find_active_signals()[2]
        if excluded:
            hooks = tuple(hook for hook in hooks if not hook.bit & excluded)
        for hook in hooks:
            try:
                hook.signal.on_operation_end(operation)
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
                self.internal_errors(f"{hook.name}.on_operation_end", exc)

    def report_operation(self, operation: Operation, record: RequestRecord | None, excluded: int) -> None:
        """Report an operation that has ended and was measured by other means, such as by a span."""
        if operation.kind in AWAITED_KINDS and record is not None and not record.complete:
            (record.work or self._new_work(record)).add(operation)
        self.on_operation_end(operation, excluded)
        operation.exception = None  # as in `Operation.close`

    def _new_work(self, record: RequestRecord) -> TimeBreakdown:
        with self._lock:  # two threads may start the first operation of a request
            record.work = record.work or TimeBreakdown()
        return record.work

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Report a pool of database connections, read at each scrape. Returns a function that reverts this."""
        return self.metrics.operations.add_pool(name, read)

    def record_connection_wait(self, pool: str, seconds: float) -> None:
        """Record the time that a caller waited for a connection of `pool`, also in the request's time breakdown."""
        reference = current_context().get(CONTEXT_KEY) if seconds >= MIN_POOL_WAIT else None
        record: RequestRecord | None = None if reference is None else reference.record  # type: ignore[attr-defined]
        if record is not None and not record.complete:
            (record.work or self._new_work(record)).add(PoolWait(perf_counter() - seconds, seconds))
        if self.settings.metrics:
            self.metrics.operations.record_connection_wait(pool, seconds)

    def record_connection_event(self, pool: str, event: str) -> None:
        """Count an event of a connection of `pool`: `begin`, `commit`, `timeout` and others."""
        if self.settings.metrics:
            self.metrics.operations.record_connection_event(pool, event)

    def background_operation(self, record: RequestRecord, function: Any) -> Operation:
        """Return the operation for one background task of a request."""
        if not record.reported:
            self._find_endpoint(record)
        name = callable_name(function)
        return Operation(
            self, "background", f"background {name}", {"endpoint": record.endpoint}, {"code.function.name": name}
        )

    # Called by users

    @fail_safe("operation", return_no_op, CALLER_ERRORS)
    def operation(self, name: str, /, **details: Any) -> Operation:
        """Measure a unit of work: `with observe.operation("charge card", provider="acme") as operation:`.

        Also usable with `async with` and as a decorator. `name` is the metric label (`operations_total`,
        `operation_duration_seconds`) and the span name: use few different names. `details`, and those added by
        `operation.add_details(...)`, go to the span and to the log line of a failure only. Raises `ValueError` for an
        empty name, `TypeError` if it is not a string.
        """
        return new_operation(self, name, details)

    @fail_safe("set")
    def set(self, /, **fields: Any) -> None:
        """Set fields of the current request or job: `observe.set(tenant="acme", user_id=7)`.

        From now on they are on its line, its span, and each line, span and operation in it. Values are redacted; None
        removes a field. At most 32 fields; values are cut to 256 characters. Outside a request it has no effect.
        """
        self._fields(fields)

    @fail_safe("detached", return_no_op)
    def detached(self) -> DetachedScope:
        """Run code outside the current request: `with observe.detached(): asyncio.create_task(worker())`.

        For tasks and threads that outlive the request that starts them. Their lines have no ids of the request, their
        operations are no part of it, and each trace that starts in there is linked to it.
        """
        return DetachedScope()

    @fail_safe("job", return_no_op, CALLER_ERRORS)
    def job(self, name: str, /, headers: MessageHeaders | None = None) -> Job:
        """Measure work outside requests: `with observe.job("send mail", headers=message.headers):`.

        Also usable with `async with` and as a decorator. A job has its own trace, which continues that of `headers`
        (of a message) if they carry one; `jobs_total` and `job_duration_seconds`; a line; and what a request has:
        operations, `observe.set`, tail sampling. `name` is the metric label and the span name: use few different names.
        Raises `ValueError` for an empty name, `TypeError` if it is not a string.
        """
        return new_job(lambda: self, name, headers)

    @property
    def http(self) -> httpx.AsyncClient:
        """An instrumented `httpx.AsyncClient`, one for each event loop, closed at shutdown."""
        return self.http_clients.shared(running_loop())

    def http_client(
        self,
        service: str | None = None,
        templates: Iterable[str] = (),
        *,
        propagate: bool | None = None,
        **options: Any,
    ) -> httpx.AsyncClient:
        """Return a new instrumented `httpx.AsyncClient`. It is closed at shutdown if you do not close it before.

        `service`, `templates` and `propagate` as in `instrument_client`; `options` are those of httpx.
        """
        return self.http_clients.new(service, templates, propagate=propagate, **options)

    def instrument_client(
        self, client: C, service: str | None = None, templates: Iterable[str] = (), *, propagate: bool | None = None
    ) -> C:
        """Measure every call of an `httpx` or `httpx2` client, sync or async, until `close`. Returns the client.

        `service` is the metric label and the span's `peer.service` (default: the host). `templates`
        (`["/invoices/{id}"]`) name calls by their path; `extensions={"template": "/invoices/{id}"}` names one call.
        `propagate` sends the trace context to all hosts or to none (default: private hosts and those in
        `propagate_to`). Raises `TypeError` if it is not such a client, `ValueError` for an invalid template.
        """
        return self.http_clients.instrument(client, service, templates, propagate=propagate)

    def instrument_engine(self, engine: Any, *, pool_name: str | None = None) -> None:
        """Measure every statement of an SQLAlchemy engine, sync or async, and its pool, until `close`. Idempotent.

        `pool_name` is the metric label of the pool. Raises `TypeError` if it is not an engine.
        """
        from fastapi_observe.clients.database.sqlalchemy import instrument_engine  # noqa: PLC0415 - SQLAlchemy is an extra

        self.on_close(instrument_engine(self.db, engine, pool_name=pool_name, internal_errors=self.internal_errors))
        if self.settings.instrument == "auto":
            self.instrumentors.leave_to_engine(engine)

    def instrument_pool(self, pool: Any, *, pool_name: str | None = None) -> None:
        """Measure every query of an `asyncpg` or `psycopg_pool` pool, and the pool, until `close`. Idempotent.

        `pool_name` is the metric label of the pool. Raises `TypeError` if it is not such a pool.
        """
        self.on_close(instrument_pool(self.db, pool, pool_name=pool_name, internal_errors=self.internal_errors))

    # Lifetime

    def on_startup(self) -> None:
        """Start everything that needs the running event loop. Idempotent in one loop; another loop is a restart."""
        self._shutdown_deadline.reset()
        open_port = partial(self.metrics_server.start, shared=self.workers.is_multiprocess)
        resolve = partial(self.objectives.start, self.metrics)
        steps: list[Callable[[], object]] = [resolve, self.workers.start, self.objectives.watch, open_port]
        steps.append(self.http_clients.reopen)
        if self._metric_loop is not None:
            steps.append(self._metric_loop.start)
        steps += self.startup_steps
        loop = running_loop()
        if loop is not None and loop is not self.loop:
            self.loop = loop
            steps.append(partial(self.saturation.start, loop))
            if self.settings.logs:
                steps.append(self.logs.start)  # captures loggers that were configured after `install`
            steps.append(self._log_default_access)
        self.internal_errors.run_each("startup", *steps)

    def _log_default_access(self) -> None:
        """Log once that only the default restricts access to the metrics, which a proxy may undermine unseen."""
        settings = self.settings
        guards = {"metrics_access", "metrics_token", "metrics_dependency", "metrics_port"}
        served = settings.metrics and not settings.development
        if self.logged_access or not served or guards & settings.model_fields_set:
            return
        self.logged_access = True
        logging.getLogger("fastapi_observe").info(
            "Metrics at %s are served to clients on private networks (the default). Not every proxy is recognized, "
            "such as nginx 1.29.7 and later without proxy_set_header: behind one, see the table at %s and set "
            "metrics_access, metrics_token or metrics_port. metrics_access='private' confirms the default.",
            settings.metrics_path,
            documentation_url("how-to/behind-a-proxy"),
        )

    async def on_shutdown(self) -> None:
        """Close the clients and flush all signals, within `shutdown_timeout`. The app stays instrumented."""
        self.internal_errors.run_each("shutdown", self.saturation.stop, self.objectives.stop, *self.shutdown_steps)
        self.loop = None
        try:
            await self.http_clients.close()
        except Exception as exc:  # noqa: BLE001 - as above
            self.internal_errors("shutdown", exc)
        seconds = self._shutdown_deadline.remaining(self.settings.shutdown_timeout)
        consequence = "Telemetry is flushed in the event loop."
        thread = start_thread(self.flush, "fastapi-observe-flush", consequence)
        if thread is None:
            self.flush(seconds)
        else:
            await _join(thread, seconds)
        self.internal_errors.run_each("shutdown", self.metrics_server.stop, partial(self.logs.flush, FINAL_LOG_FLUSH))
        if self._metric_loop is not None:
            self._metric_loop.pause()
        self.internal_errors.run_each("shutdown", self.workers.stop)

    def flush(self, timeout: float | None = None) -> None:
        """Write and export queued telemetry, for at most `timeout` seconds in total (default: `shutdown_timeout`)."""
        deadline = monotonic() + (self.settings.shutdown_timeout if timeout is None else timeout)
        pushes = [("push.flush", push.flush) for push in self._pushes]
        for site, flush in (("logs.flush", self.logs.flush), ("traces.flush", self.tracing.flush), *pushes):
            self.internal_errors.run_each(site, partial(flush, max(0.0, deadline - monotonic())))

    def push_until_exit(self) -> None:
        """Export the metrics now, if `otlp_metrics` is set, and a last time when this process ends.

        The first export starts the queue, which closes at exit too: callbacks run in the reverse of their order.
        """
        if self._metric_loop is not None:
            self._metric_loop.push()
            self.on_close(register_at_exit(self, Observability.flush))

    def on_close(self, undo: Callable[[], None]) -> None:
        """Register a function that `close` calls, the last one first."""
        self._undo.append(undo)

    def close(self) -> None:
        """Uninstall: restore the app and end all threads. Idempotent.

        Telemetry that is not exported within `shutdown_timeout` is dropped.
        """
        if self.closed:
            return
        self.closed = True
        INSTALLED.remove(self)
        Observability.inspecting -= bool(self.filter)
        background.uninstrument()
        closes = (
            self.objectives.stop,
            self.http_clients.restore,
            self.saturation.close,
            self._flush_and_close,
            self.metrics_server.stop,
            self.workers.stop,
            self.metrics.close,
            self.logs.close,
        )
        self.internal_errors.run_each("close", *reversed(self._undo), *closes)

    def _flush_and_close(self) -> None:
        deadline = monotonic() + self.settings.shutdown_timeout

        def flush_and_close() -> None:
            self.flush()
            for push in self._pushes:
                self.internal_errors.run_each("close", partial(push.close, max(0.0, deadline - monotonic())))
            self.internal_errors.run_each("close", self.tracing.close)

        thread = start_thread(flush_and_close, "fastapi-observe-close", "Telemetry is flushed without a thread.")
        if thread is None:
            flush_and_close()
        else:
            thread.join(self.settings.shutdown_timeout)


async def _join(thread: threading.Thread, seconds: float) -> None:
    # Not a timer of the event loop: under a frozen clock it never fires. A limiter of its own: slow requests may hold
    # all tokens of the default one.
    try:
        await anyio.to_thread.run_sync(thread.join, seconds, limiter=anyio.CapacityLimiter(1), abandon_on_cancel=True)
    except RuntimeError:  # the limit of threads is reached
        thread.join(seconds)
