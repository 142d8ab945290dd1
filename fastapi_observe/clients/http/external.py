"""`external.call(...)`: a call to another service is one operation with a span, a count, a duration and a log line."""

from __future__ import annotations

import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.clients.http.propagation import PropagationPolicy
from fastapi_observe.records.exceptions import exception_outcome
from fastapi_observe.records.guard import CALLER_ERRORS, NO_OP, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import Operation
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from fastapi_observe.records.operation import OperationReporter

H = TypeVar("H", bound="MutableMapping[str, str]")

MAX_SERVICES: Final = 100
"""Different hosts that become a `service` label of their own; the others are called `other`."""

MAX_SERVICE_NAME_LENGTH: Final = 253
"""Characters of a host that may become a label: what is longer is no DNS name."""


class ExternalCall(Operation):
    """A call to another service.

    `outcome` is `ok`, `client_error`, `server_error`, `timeout`, `connect_error`, `cancelled` or `error`.
    """

    __slots__ = ("_propagation",)

    def __init__(  # noqa: PLR0913, PLR0917 - what a call begins with
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

    @fail_safe("external.status", passes=CALLER_ERRORS)
    def set_status_code(self, status_code: int) -> None:
        """Note the HTTP status of the answer; 4xx is outcome `client_error`, 5xx `server_error`.

        Only 5xx is an error of the span: a callee that refuses does its work. Of several answers the last one counts.
        """
        status_code = int(status_code)
        self.details["http.response.status_code"] = status_code
        self.outcome_for_status(status_code)

    def outcome_for_status(self, status_code: int) -> None:
        """Name the outcome of an answer with this status."""
        self.outcome, self.error_type = "", None
        if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.outcome, self.error_type = "server_error", str(status_code)
        elif status_code >= HTTPStatus.BAD_REQUEST:
            self.outcome = "client_error"

    @fail_safe("external.inject", otherwise=lambda _, headers, *__, **___: headers)
    def inject(self, headers: H, host: str | None = None) -> H:
        """Add the headers that let the callee continue this trace, and return them; call it inside the block.

        For whatever carries text by name: gRPC metadata, attributes of a message (Kafka, SQS), a job's headers. Redis
        or boto3 have no place for them and need no call. With `host` the rule of the httpx clients holds: only private
        hosts and those of `propagate_to` get any, others lose what came along; without it the callee is trusted. Of
        baggage the keys of `propagate_baggage` go along.

            async with external.call("billing", "GetInvoice") as call:
                await stub.GetInvoice(request, metadata=tuple(call.inject({}).items()))
        """
        (self._propagation or PropagationPolicy()).inject(host, headers)
        return headers

    def judge(self, exc: BaseException) -> str:
        """Tell time-outs and failed connections apart, those of httpx, requests, gRPC and redis too."""
        names = {kind.__name__ for kind in type(exc).__mro__}
        if names & {"TimeoutException", "TimeoutError", "Timeout"}:
            return "timeout"
        if names & {"ConnectError", "ConnectionError"}:
            return "connect_error"
        return exception_outcome(exc)

    @fail_safe("operation.again", return_no_op)
    def again(self) -> ExternalCall:
        """Return a call like this one, which has not begun."""
        details = None if self._given is None else dict(self._given)
        return ExternalCall(self.reporter, self.kind, self.name, self.labels, details, self._propagation)


class ExternalClient:
    """Measures calls to other services."""

    __slots__ = ("_hosts", "_lock", "_shown", "propagation", "reporter")

    def __init__(self, reporter: OperationReporter, propagation: PropagationPolicy | None = None) -> None:
        self.reporter = reporter
        self._shown: Callable[[str], str] = getattr(reporter, "redactor", DEFAULT_REDACTOR).name
        self.propagation = propagation or PropagationPolicy()
        self._hosts: set[str] = set()
        self._lock = threading.Lock()

    def service_label(self, host: str) -> str:
        """Return the `service` label of a host: its name, `other` once there are too many."""
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
        `external_request_duration_seconds`) and the span's name, so they must be few; `details` go to the span and the
        log line only. Tell the answer's HTTP status with `call.status(...)`; `call.inject(...)` adds the headers that
        carry the trace on. httpx clients do all of this by themselves: `observe.instrument_client`.
        """
        try:
            service, operation = self._shown(service), self._shown(operation)
            return ExternalCall(
                self.reporter,
                "external",
                f"{operation} {service}",
                {"service": service, "operation": operation},
                {"peer.service": service, **details},
                self.propagation,
            )
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("external.call", exc, self.reporter)
            return NO_OP  # type: ignore[no-any-return]
