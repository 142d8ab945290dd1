"""`HttpCalls`: what is done when a call by an httpx client begins, sends something, and is answered."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.clients.http.record import CallLabels, HttpCall, PathTemplates
from fastapi_observe.records.operation import CURRENT_OPERATION
from fastapi_observe.records.request import KNOWN_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi_observe.clients.http.body import StreamedBody
    from fastapi_observe.clients.http.external import ExternalClient
    from fastapi_observe.clients.http.record import Request
    from fastapi_observe.redaction.redactor import Redactor

MAX_TEMPLATES: Final = 200
"""Different path templates that become part of an `operation` label; with further ones it is the method alone."""

MAX_TEMPLATE_LENGTH: Final = 200
_SWITCHING_PROTOCOLS: Final = 101
_CLIENT_ERROR: Final = 400

MAX_CALL_NAMES: Final = 1024
"""Names of calls that are kept rather than made anew."""


class ObservedClient:
    """What is known of one client before it calls: the user's names for what it calls, and who may know the trace."""

    __slots__ = ("active", "hook", "propagate", "service", "templates")

    def __init__(self, service: str | None, templates: Iterable[str], prefix: str, *, propagate: bool | None) -> None:
        self.templates = PathTemplates(templates, prefix)
        self.service = service
        self.propagate = propagate
        self.active = True
        self.hook: Callable[[Any], Any] | None = None

    def keep_hook(self, client: Any) -> None:
        """Have our hook be one of the client's: the user may have set others since."""
        hooks = client.event_hooks["request"]
        if self.hook not in hooks:
            client.event_hooks["request"] = [*hooks, self.hook]


class HttpCalls:
    """Shared by all clients. Each of the three moments is guarded: a fault of ours never reaches the call."""

    def __init__(
        self, external: ExternalClient, faults: Callable[[str, BaseException], None], redactor: Redactor
    ) -> None:
        self._external = external
        self._faults = faults
        self._redactor = redactor
        self._templates: set[str] = set()
        self._names: dict[tuple[str, str, str | None], CallLabels] = {}
        self._forgotten: deque[tuple[HttpCall, float]] = deque()

    def begin(self, observed: ObservedClient, client: Any, request: Request) -> HttpCall | None:
        """Open the call that begins with `request`; None if there is nothing to measure."""
        try:
            if self._forgotten:
                self.close_abandoned()
            current = CURRENT_OPERATION.get()
            if not observed.active or (isinstance(current, HttpCall) and current.request is request):
                return None  # the client is observed for two apps: the one around this is measuring
            observed.keep_hook(client)
            url = request.url
            host = url.host
            template = request.extensions.get("template")
            if not isinstance(template, str):
                template = observed.templates.find(url.raw_path)
            service = observed.service or self._external.service_label(host or "unknown")
            named = self._name(service, request.method if request.method in KNOWN_METHODS else "_OTHER", template)
            return HttpCall(self._external.reporter, observed, named, request, host).open()
        except Exception as exc:  # noqa: BLE001 - the call goes on without us
            self._faults("http.begin", exc)
            return None

    def _name(self, service: str, method: str, template: str | None) -> CallLabels:
        key = service, method, template
        named = self._names.get(key)
        if named is None:
            if template is not None and not self._is_known(template):
                template = None
            operation = method if template is None else f"{method} {template}"
            name, labels = f"{operation} {service}", {"service": service, "operation": operation}
            named = CallLabels(name, labels, method, template, self._redactor)
            if len(self._names) < MAX_CALL_NAMES:
                self._names[key] = named
        return named

    def _is_known(self, template: str) -> bool:
        """Tell whether a template is one of those that are told apart."""
        if template in self._templates:
            return True
        if len(template) > MAX_TEMPLATE_LENGTH or len(self._templates) >= MAX_TEMPLATES:
            return False
        self._templates.add(template)
        return True

    def on_request(self, observed: ObservedClient, request: Request) -> None:
        """Note that `request` goes out, the first one or a further one; tell its host the trace, or hide it."""
        try:
            if not observed.active:
                return
            call = CURRENT_OPERATION.get()
            while call is not None and not isinstance(call, HttpCall):
                call = call.parent
            host, allowed = request.url.host, observed.propagate
            if call is not None:
                if call.client is not observed:
                    return  # measured for another app, whose rule holds; or a hook that was copied to another client
                call.sends += 1
                call.request = request
                if allowed and host != call.host:
                    allowed = None
            self._external.propagation.inject(host, request.headers, allowed=allowed)
        except Exception as exc:  # noqa: BLE001 - the request goes out as it is
            self._faults("http.sending", exc)

    def on_response(self, call: HttpCall, response: Any, body: type[StreamedBody] | None) -> None:
        """Close the call, or let it go on as long as the streamed `body` is read."""
        try:
            call.status_code = status = response.status_code
            call.extensions = response.extensions
            if status >= _CLIENT_ERROR:
                call.outcome_for_status(status)
            if body is None or response.is_closed:
                call.received = response.num_bytes_downloaded or None  # 0 too if it was there from the start
            elif status != _SWITCHING_PROTOCOLS:
                response.stream = body(response.stream, call, self._forgotten)
                call.suspend()
                return
        except Exception as exc:  # noqa: BLE001 - the caller has its answer
            self._faults("http.answered", exc)
        call.close()

    def close_abandoned(self) -> None:
        """Close the calls whose answers were collected before anybody had read or closed them."""
        while self._forgotten:
            call, at = self._forgotten.popleft()
            call.started += perf_counter() - at  # it was over then
            call.outcome, call.error_type = "incomplete_response", "incomplete_response"
            call.close()
