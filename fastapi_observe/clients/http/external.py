"""`external.call(...)`: measures a call to another service as one operation."""

from __future__ import annotations

import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.clients.http.propagation import PropagationPolicy
from fastapi_observe.internal.errors import Renamed
from fastapi_observe.records.exceptions import exception_outcome
from fastapi_observe.records.guard import CALLER_ERRORS, NO_OP, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import Operation
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from fastapi_observe.records.operation import OperationReporter

H = TypeVar("H", bound="MutableMapping[str, str]")

MAX_SERVICES: Final = 100
"""Hosts with a `service` label of their own. Further ones have the label `other`."""

MAX_SERVICE_NAME_LENGTH: Final = 253
"""Characters of a host that becomes a label: the maximum of a DNS name (RFC 1035)."""


class ExternalCall(Operation):
    """A call to another service.

    `outcome` is `ok`, `client_error`, `server_error`, `timeout`, `connect_error`, `cancelled` or `error`.
    """

    __slots__ = ("_propagation",)

    def __init__(  # noqa: PLR0913, PLR0917 - those of Operation, and one more
        self,
        reporter: OperationReporter,
        kind: str,
        name: str,
        labels: dict[str, str],
        details: dict[str, Any] | None = None,
        propagation: PropagationPolicy | None = None,
    ) -> None:
        Operation.__init__(self, reporter, kind, name, labels, details)
        self._propagation = propagation

    status = Renamed("set_status_code")

    @fail_safe("external.set_status_code", reraise=CALLER_ERRORS)
    def set_status_code(self, status_code: int) -> None:
        """Record the HTTP status of the response: outcome `client_error` for 4xx, `server_error` for 5xx.

        Only 5xx is an error of the span. If called several times, the last status counts. Raises `TypeError` or
        `ValueError` if it is not a number.
        """
        status_code = int(status_code)
        self.details["http.response.status_code"] = status_code
        self.outcome_for_status(status_code)

    def outcome_for_status(self, status_code: int) -> None:
        """Set `outcome` and `error_type` for this status."""
        self.outcome, self.error_type = "", None
        if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.outcome, self.error_type = "server_error", str(status_code)
        elif status_code >= HTTPStatus.BAD_REQUEST:
            self.outcome = "client_error"

    @fail_safe("external.inject", fallback=lambda _, headers, *__, **___: headers)
    def inject(self, headers: H, host: str | None = None) -> H:
        """Add the trace context to `headers` and return them, so that the callee continues this trace.

        Call it inside the block. Works for anything that carries strings by name: gRPC metadata, attributes of a
        message (Kafka, SQS), headers of a job. With `host`, the rule of the httpx clients applies: private hosts and
        those in `propagate_to` receive it; for other hosts trace headers are removed. Without `host`, the callee is
        trusted. Of the baggage, the keys in `propagate_baggage` are sent.

            async with external.call("billing", "GetInvoice") as call:
                await stub.GetInvoice(request, metadata=tuple(call.inject({}).items()))
        """
        (self._propagation or PropagationPolicy()).inject(host, headers)
        return headers

    def outcome_for(self, exc: BaseException) -> str:
        """Return `timeout` or `connect_error` for those of any library, else the outcome of any operation."""
        names = {kind.__name__ for kind in type(exc).__mro__}  # by name: httpx, requests, redis need no import
        if names & {"TimeoutException", "TimeoutError", "Timeout"}:
            return "timeout"
        if names & {"ConnectError", "ConnectionError"}:
            return "connect_error"
        return exception_outcome(exc)

    @fail_safe("operation.copy", return_no_op)
    def copy(self) -> ExternalCall:
        """Return an unstarted call with the same labels and details, for each call of a decorated function."""
        details = None if self._given is None else dict(self._given)
        return ExternalCall(self.reporter, self.kind, self.name, self.labels, details, self._propagation)


class ExternalClient:
    """Creates operations for calls to other services."""

    __slots__ = ("_hosts", "_lock", "_redact_name", "propagation", "reporter")

    def __init__(self, reporter: OperationReporter, propagation: PropagationPolicy | None = None) -> None:
        self.reporter = reporter
        self._redact_name: Callable[[str], str] = getattr(reporter, "redactor", DEFAULT_REDACTOR).name
        self.propagation = propagation or PropagationPolicy()
        self._hosts: set[str] = set()
        self._lock = threading.Lock()

    def service_label(self, host: str) -> str:
        """Return the `service` label of a host: the host, or `other` beyond `MAX_SERVICES` hosts."""
        if host in self._hosts:
            return host
        with self._lock:
            if len(self._hosts) >= MAX_SERVICES or len(host) > MAX_SERVICE_NAME_LENGTH:
                return "other"
            self._hosts.add(host)
        return host

    def call(self, service: str, operation: str, /, **details: Any) -> ExternalCall:
        """Measure one call: `async with external.call("billing", "get_invoice") as call:`, or plain `with`.

        `service` and `operation` become metric labels (`external_requests_total`,
        `external_request_duration_seconds`) and the span's name, so use few different ones; `details` are added to the
        span and the log line only. Set the response's HTTP status with `call.set_status_code(...)`; `call.inject(...)`
        adds the trace context to headers. Not needed for httpx clients: `observe.instrument_client` does all of this.
        """
        try:
            service, operation = self._redact_name(service), self._redact_name(operation)
            return ExternalCall(
                self.reporter,
                "external",
                f"{operation} {service}",
                {"service": service, "operation": operation},
                {"peer.service": service, **details},
                self.propagation,
            )
        except Exception as exc:  # noqa: BLE001 - an internal error is never raised to the caller
            report_error("external.call", exc, self.reporter)
            return NO_OP  # type: ignore[no-any-return]
