"""`external.call(...)`: a call to another service is one operation with a span, a count, a duration and a log line."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.records.operation import Operation, outcome_of

if TYPE_CHECKING:
    from fastapi_observe.records.operation import OperationReporter

MOST_SERVICES: Final = 100
"""Different hosts that become a `service` label of their own; the others are called `other`."""


class ExternalCall(Operation):
    """A call to another service.

    `outcome` is `ok`, `client_error`, `server_error`, `timeout`, `connect_error`, `cancelled` or `error`.
    """

    __slots__ = ()

    def status(self, status_code: int) -> None:
        """Note the HTTP status of the answer; 4xx is outcome `client_error`, 5xx `server_error`.

        Only 5xx is an error of the span: a callee that refuses does its work. Of several answers the last one counts.
        """
        status_code = int(status_code)
        self.details["http.response.status_code"] = status_code
        self.outcome, self.error_type = "", None
        if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.outcome, self.error_type = "server_error", str(status_code)
        elif status_code >= HTTPStatus.BAD_REQUEST:
            self.outcome = "client_error"

    def judge(self, exc: BaseException | None) -> str:
        """Tell time-outs and failed connections apart, those of httpx and requests too."""
        names = {kind.__name__ for kind in type(exc).__mro__}
        if names & {"TimeoutException", "TimeoutError", "Timeout"}:
            return "timeout"
        if names & {"ConnectError", "ConnectionError"}:
            return "connect_error"
        return outcome_of(exc)


class ExternalClient:
    """Measures calls to other services."""

    __slots__ = ("_hosts", "_reporter")

    def __init__(self, reporter: OperationReporter) -> None:
        self._reporter = reporter
        self._hosts: set[str] = set()

    def service_of(self, host: str) -> str:
        """Return the `service` label of a host: its name, `other` once there are too many."""
        if host not in self._hosts and len(self._hosts) >= MOST_SERVICES:
            return "other"
        self._hosts.add(host)
        return host

    def call(self, service: str, operation: str, /, **details: Any) -> ExternalCall:
        """Measure one call: `async with external.call("billing", "get_invoice") as call:`, or plain `with`.

        `service` and `operation` become metric labels (`external_requests_total`,
        `external_request_duration_seconds`) and the span's name; `details` go to the span and the log line only. Tell
        the answer's HTTP status with `call.status(...)`; take headers that carry the trace on from
        `tracing.inject({})`.
        """
        return ExternalCall(
            self._reporter,
            "external",
            f"{operation} {service}",
            {"service": service, "operation": operation},
            {"peer.service": service, **details},
        )
