"""`JobRecord`: the record of one job, which is work outside requests."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind

from fastapi_observe.records.exceptions import error_type_of, exception_outcome
from fastapi_observe.records.request import RequestRecord

if TYPE_CHECKING:
    from fastapi_observe.internal.errors import InternalErrors

METHOD = "JOB"
"""Used where a request has its method, on the console and in warnings."""


class JobRecord(RequestRecord):
    """One job. `endpoint` is its name, `outcome` is `ok`, `error`, `timeout` or `cancelled`.

    `span_kind` is CONSUMER if the job continues the trace of a message. `scope` has the headers of the message only.
    """

    __slots__ = ("span_kind",)

    job = True

    def __init__(self, name: str, headers: list[tuple[bytes, bytes]], internal_errors: InternalErrors) -> None:
        no_server: Any = None
        super().__init__({"type": "job", "headers": headers}, no_server, no_server, internal_errors, no_server)
        self.method = METHOD
        self.endpoint = self.path = name
        self.span_kind = SpanKind.INTERNAL
        self.reported = True  # the name is final: there is no route to look for

    def end(self, raised: BaseException | None) -> None:
        """Set duration and outcome.

        A generator that was closed before its end has not failed, nor has a script that ends with `sys.exit()`.
        """
        self.duration = perf_counter() - self.started
        self.complete = True
        if raised is None or isinstance(raised, GeneratorExit) or (isinstance(raised, SystemExit) and not raised.code):
            self.outcome = "ok"
            return
        self.exception = raised
        self.error_type = error_type_of(raised)
        self.outcome = exception_outcome(raised)
