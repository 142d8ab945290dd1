"""`HttpCalls`: the start of a call by an httpx client, each request that it sends, and its response."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.clients.http.record import CallLabels, HttpCall, PathTemplates
from fastapi_observe.records.operation import current_operation
from fastapi_observe.records.request import KNOWN_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx

    from fastapi_observe.clients.http.body import StreamedBody
    from fastapi_observe.clients.http.external import ExternalClient
    from fastapi_observe.redaction.redactor import Redactor

MAX_LABEL_TEMPLATES: Final = 200
"""Path templates that become part of an `operation` label. For further ones the label is the method alone."""

MAX_TEMPLATE_LENGTH: Final = 200
"""Characters of a path template in a label."""

MAX_CALL_NAMES: Final = 1024
"""Cached combinations of service, method and template."""

_SWITCHING_PROTOCOLS: Final = 101
_CLIENT_ERROR: Final = 400


class ObservedClient:
    """The options with which a client was instrumented. `propagate` None: the host decides."""

    __slots__ = ("active", "hook", "propagate", "service", "templates")

    def __init__(self, service: str | None, templates: Iterable[str], prefix: str, *, propagate: bool | None) -> None:
        self.templates = PathTemplates(templates, prefix)
        self.service = service
        self.propagate = propagate
        self.active = True  # False once the client was uninstrumented
        self.hook: Callable[[Any], Any] | None = None

    def ensure_hook(self, client: Any) -> None:
        """Add our request hook to the client again if the user has replaced its hooks since."""
        hooks = client.event_hooks["request"]
        if self.hook not in hooks:
            client.event_hooks["request"] = [*hooks, self.hook]


class HttpCalls:
    """Measures the calls of all clients of an app. An internal error in any method is counted and never raised."""

    def __init__(
        self, external: ExternalClient, internal_errors: Callable[[str, BaseException], None], redactor: Redactor
    ) -> None:
        self._external = external
        self._internal_errors = internal_errors
        self._redactor = redactor
        self._templates: set[str] = set()
        self._labels: dict[tuple[str, str, str | None], CallLabels] = {}
        self._abandoned: deque[tuple[HttpCall, float]] = deque()

    def begin(self, observed: ObservedClient, client: Any, request: httpx.Request) -> HttpCall | None:
        """Open and return the call that starts with `request`, or None if it is not to be measured."""
        try:
            if self._abandoned:
                self.close_abandoned()
            current = current_operation()
            if not observed.active or (isinstance(current, HttpCall) and current.request is request):
                return None  # the client is instrumented for two apps, and the outer wrapper measures
            observed.ensure_hook(client)
            url = request.url
            host = url.host
            template = request.extensions.get("template")
            if not isinstance(template, str):
                template = observed.templates.find(url)
            service = observed.service or self._external.service_label(host or "unknown")
            labels = self._labels_for(
                service, request.method if request.method in KNOWN_METHODS else "_OTHER", template
            )
            return HttpCall(self._external.reporter, observed, labels, request, host).open()
        except Exception as exc:  # noqa: BLE001 - the call goes on without us
            self._internal_errors("http.begin", exc)
            return None

    def _labels_for(self, service: str, method: str, template: str | None) -> CallLabels:
        key = service, method, template
        call_labels = self._labels.get(key)
        if call_labels is None:
            if template is not None and not self._is_template_label(template):
                template = None
            operation = method if template is None else f"{method} {template}"
            name, labels = f"{operation} {service}", {"service": service, "operation": operation}
            call_labels = CallLabels(name, labels, method, template, self._redactor)
            if len(self._labels) < MAX_CALL_NAMES:
                self._labels[key] = call_labels
        return call_labels

    def _is_template_label(self, template: str) -> bool:
        if template in self._templates:
            return True
        if len(template) > MAX_TEMPLATE_LENGTH or len(self._templates) >= MAX_LABEL_TEMPLATES:
            return False
        self._templates.add(template)
        return True

    def on_request(self, observed: ObservedClient, request: httpx.Request) -> None:
        """Count a request about to be sent, the first of its call or a further one, and add or remove trace headers."""
        try:
            if not observed.active:
                return
            call = current_operation()
            while call is not None and not isinstance(call, HttpCall):
                call = call.parent
            url, allowed = request.url, observed.propagate
            if call is None:
                host = url.host
            else:
                if call.client is not observed:
                    return  # another app measures this call, or the user has copied our hook to another client
                call.sends += 1
                call.request = request
                host = call.host if url is call.url else url.host
                if allowed and host != call.host:  # `propagate=True` was meant for the host of the call
                    allowed = None
            self._external.propagation.inject(host, request.headers, allowed=allowed)
        except Exception as exc:  # noqa: BLE001 - the request is sent as it is
            self._internal_errors("http.on_request", exc)

    def on_response(self, call: HttpCall, response: Any, body: type[StreamedBody] | None) -> None:
        """End the call, or, for a streamed response, wrap its body in `body` so that the call ends with it."""
        try:
            call.status_code = status = response.status_code
            call.extensions = response.extensions
            if status >= _CLIENT_ERROR:
                call.outcome_for_status(status)
            if body is None or response.is_closed:
                call.received = response.num_bytes_downloaded or None  # 0 also if the body was given, not received
            elif status != _SWITCHING_PROTOCOLS:
                response.stream = body(response.stream, call, self._abandoned)
                call.suspend()
                return
        except Exception as exc:  # noqa: BLE001 - the caller gets the response
            self._internal_errors("http.on_response", exc)
        call.close()

    def close_abandoned(self) -> None:
        """Close the calls whose responses were garbage-collected before they were read or closed."""
        while self._abandoned:
            call, collected_at = self._abandoned.popleft()
            call.started += perf_counter() - collected_at  # the time since then is not part of the call
            call.outcome, call.error_type = "incomplete_response", "incomplete_response"
            call.close()
