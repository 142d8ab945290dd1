"""`MetricNames`: the names and labels of the HTTP request metrics, for the code that records and that queries them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.records.endpoint import REDIRECT, UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.settings.model import ObserveSettings

SCHEMES: Final = frozenset({"http", "https"})
VERSIONS: Final = frozenset({"1.0", "1.1", "2", "3"})
OTHER: Final = "_OTHER"
"""Value of a label for everything that is not on its list, as OpenTelemetry writes it."""


class MetricNames(NamedTuple):
    """Metrics and labels by their meaning.

    `requests` is the counter of requests; with `has_counter` False it is the count of the histogram `duration`.
    `errors` is the metric whose label `error_type` is the cause of a failure, and `only_errors` the matcher for series
    with a cause. `unmatched` is the label value of requests without a matched route.
    """

    requests: str
    has_counter: bool
    duration: str
    request_size: str
    response_size: str
    in_progress: str
    errors: str
    only_errors: str
    method: str
    endpoint: str
    status_code: str
    unmatched: str

    @property
    def placeholders(self) -> Mapping[str, str]:
        """Values for the placeholders of queries: `<http_requests>`, `<endpoint>` and so on."""
        return {
            "http_requests": self.requests,
            "http_duration": self.duration,
            "http_response_size": self.response_size,
            "http_in_progress": self.in_progress,
            "http_errors": self.errors,
            "only_errors": self.only_errors,
            "method": self.method,
            "endpoint": self.endpoint,
            "status_code": self.status_code,
        }

    def rename_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return labels that have the default names under the names of these metrics."""
        known = {"method": self.method, "endpoint": self.endpoint, "status_code": self.status_code}
        return {
            known.get(name, name): self.unmatched if (name, value) == ("endpoint", UNMATCHED) else value
            for name, value in labels.items()
        }


PROMETHEUS: Final = MetricNames(
    requests="http_requests_total",
    has_counter=True,
    duration="http_request_duration_seconds",
    request_size="http_request_size_bytes",
    response_size="http_response_size_bytes",
    in_progress="http_requests_in_progress",
    errors="http_request_errors_total",
    only_errors="",
    method="method",
    endpoint="endpoint",
    status_code="status_code",
    unmatched=UNMATCHED,
)

SEMCONV: Final = MetricNames(
    requests="http_server_request_duration_seconds_count",
    has_counter=False,
    duration="http_server_request_duration_seconds",
    request_size="http_server_request_body_size_bytes",
    response_size="http_server_response_body_size_bytes",
    in_progress="http_server_active_requests",
    errors="http_server_request_duration_seconds_count",
    only_errors=',error_type!=""',
    method="http_request_method",
    endpoint="http_route",
    status_code="http_response_status_code",
    unmatched="",
)

SEMCONV_LABELS: Final = (
    "http_request_method",
    "http_route",
    "http_response_status_code",
    "url_scheme",
    "network_protocol_version",
    "error_type",
)
"""Attributes of `http.server.request.duration`, as Prometheus spells them."""


def choose_metric_names(settings: ObserveSettings) -> MetricNames:
    """Return the names that the settings ask for."""
    return SEMCONV if settings.metric_names == "semconv" else PROMETHEUS


def semconv_labels(record: RequestRecord) -> tuple[str, str, str]:
    """Return scheme, version of the protocol and cause of the failure of a request. A client chooses none of them."""
    scheme, version = record.scope.get("scheme", "http"), record.scope.get("http_version", "")
    return (
        scheme if scheme in SCHEMES else OTHER,
        version if version in VERSIONS else OTHER if version else "",
        record.error_type or "",
    )


def semconv_route(endpoint: str) -> str:
    """Return the label `http_route`, which is missing where no route matched."""
    return "" if endpoint in {UNMATCHED, REDIRECT} else endpoint
