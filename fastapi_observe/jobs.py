"""`Job`: work outside requests, with a trace, metrics and a line of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from fastapi_observe.detached import DetachedScope
from fastapi_observe.internal.opentelemetry import attach_context, current_context, detach_context
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.records.guard import fail_safe, report_error
from fastapi_observe.records.job import JobRecord
from fastapi_observe.records.operation import MAX_OPERATION_NAME_LENGTH, require_name
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.records.wrapping import AsyncWith, wrap_calls

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from opentelemetry.context import Context

F = TypeVar("F", bound="Callable[..., Any]")

MessageHeaders = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
"""Headers of a message: a mapping, or pairs as Kafka clients have them; names and values are `str` or `bytes`."""

MAX_HEADERS: Final = 256
MAX_MESSAGE_HEADER_LENGTH: Final = 8192
"""Headers of a message that are looked at, and characters of each; longer ones are ignored."""


def new_job(find: Callable[[], Any], name: str, headers: MessageHeaders | None) -> Job:
    """Return a job. `find` returns the `Observability` to report to, or None. Raises as described there."""
    require_name("job", name)
    return Job(find, name, headers)


class Job(AsyncWith):
    """A job, usable with `with`, with `async with` and as a decorator; each use is a job of its own.

    It runs outside the current request, as in `observe.detached()`. Nothing in it raises in the user's code.
    """

    __slots__ = ("_find", "_headers", "_name", "_runs")

    def __init__(self, find: Callable[[], Any], name: str, headers: MessageHeaders | None) -> None:
        self._find = find
        self._name = name
        self._headers = headers
        self._runs: list[JobRun] = []

    def __call__(self, function: F) -> F:
        """Decorate a function, coroutine function, generator or async generator: each call is one job."""
        return cast("F", wrap_calls(function, self._new_run))

    def _new_run(self) -> JobRun:
        return JobRun(self._find, self._name, self._headers)

    def __enter__(self) -> Self:
        run = self._new_run()
        self._runs.append(run)
        run.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._runs:  # left twice
            return
        # Of several that are open, in threads or tasks, the one that this block has entered is current.
        current = next((run for run in reversed(self._runs) if run.is_current()), None)
        run = current or self._runs[-1]
        self._runs.remove(run)
        run.close(exc)


class JobRun:
    """One run of a job. Its methods do not raise."""

    __slots__ = ("_context", "_detached", "_find", "_headers", "_name", "_observability", "_token", "record")

    def __init__(self, find: Callable[[], Any], name: str, headers: MessageHeaders | None) -> None:
        self._find = find
        self._name = name
        self._headers = headers
        self._observability: Any = None
        self._detached: DetachedScope | None = None
        self._context: Context | None = None
        self._token: Token[Context] | None = None
        self.record: JobRecord | None = None

    def open(self) -> None:
        """Start the job and make its context the current one. Without an install, nothing is reported."""
        try:
            self._observability = observability = self._find()
            if observability is None:
                return
            if observability.before_job is not None:
                observability.before_job()
            name = observability.redactor.name(self._name)[:MAX_OPERATION_NAME_LENGTH]
            record = JobRecord(name, observability.read_headers(self._headers), observability.internal_errors)
            self._detached = DetachedScope()
            self._detached.__enter__()
            observability.start_job(record)
            self.record = record
            self._context = record.context
            self._enter()
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("job.open", exc, self._observability)

    def _enter(self) -> None:
        if self._context is not None:
            self._token = attach_context(self._context)

    @fail_safe("job.suspend")
    def suspend(self) -> None:
        """Restore the context from before the job, which continues."""
        self._context = current_context()
        self._leave()

    @fail_safe("job.resume")
    def resume(self) -> None:
        """Make the context of the job the current one again."""
        if self.record is not None:
            self._detached = DetachedScope()
            self._detached.__enter__()
            self._enter()

    def _leave(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(ValueError):  # left in another task, whose context has nothing to restore
                detach_context(token)
        detached, self._detached = self._detached, None
        if detached is not None:
            detached.__exit__()

    @fail_safe("job.close")
    def close(self, exc: BaseException | None = None) -> None:
        """End the job with the exception that was raised, report it, and restore the context."""
        record, self.record = self.record, None
        try:
            if record is not None:
                record.end(exc)
                self._observability.end_job(record)
        finally:
            self._leave()
            if record is not None:
                record.release()

    def is_current(self) -> bool:
        """Return whether the calling code runs in this job."""
        reference = current_context().get(CONTEXT_KEY)
        return self.record is not None and reference is self.record.current


class HeaderReader:
    """Reads the headers of messages for one install. A warning says that some cannot be read."""

    def __init__(self) -> None:
        self._throttle = LogThrottle()

    def __call__(self, headers: MessageHeaders | None) -> list[tuple[bytes, bytes]]:
        """Return headers as ASGI has them. Leaves out what cannot be the header of a trace."""
        found: list[tuple[bytes, bytes]] = []
        try:
            pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
            for pair in islice(pairs, MAX_HEADERS):
                name, value = map(_to_bytes, pair)
                if name and value:
                    found.append((name.lower(), value))
        except Exception as exc:  # noqa: BLE001 - not pairs, or a class of a client that raises anything
            if self._throttle.allow("headers"):
                logging.getLogger("fastapi_observe").warning(
                    "The headers of a message could not be read (%s): its job starts a trace of its own. Pass "
                    "observe.job a mapping or pairs, whose names and values are str or bytes.",
                    type(exc).__name__,
                )
        return found


def _to_bytes(text: object) -> bytes:
    if isinstance(text, list | tuple) and len(text) == 1:  # header values of aio-pika and others
        text = text[0]
    if isinstance(text, str):
        text = text.encode("latin-1", "replace") if len(text) <= MAX_MESSAGE_HEADER_LENGTH else b""
    return bytes(text) if isinstance(text, bytes | bytearray) and len(text) <= MAX_MESSAGE_HEADER_LENGTH else b""
