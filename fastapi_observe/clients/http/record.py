"""`HttpCall`: the operation of one call by an httpx client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from fastapi_observe.clients.http.external import ExternalCall
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import KNOWN_METHODS, MAX_METHOD_LENGTH
from fastapi_observe.redaction.redactor import MAX_PATH_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx

    from fastapi_observe.records.operation import OperationReporter
    from fastapi_observe.redaction.redactor import Redactor


class PathTemplates:
    """The path templates of one client. The first that matches a path names the call.

    `{name}` matches one segment, `{name:path}` any number of them. `prefix`, the path of the client's base URL, is
    optional before every template.
    """

    def __init__(self, templates: Iterable[str], prefix: str = "") -> None:
        if isinstance(templates, str):
            raise TypeError(f'templates must be a list of strings, not a string: templates=["{templates}"]')
        self._templates = tuple(templates)
        for template in self._templates:
            if not isinstance(template, str) or not template.startswith("/"):
                raise ValueError(f"invalid path template {template!r:.80}; write it like /invoices/{{id}}")
        choices = "|".join(f"({_pattern(template)})" for template in self._templates)
        self._pattern = re.compile(f"(?:{re.escape(prefix.rstrip('/'))})?(?:{choices})")

    def find(self, url: httpx.URL) -> str | None:
        """Return the template that matches the path of a URL, as sent, or None."""
        if not self._templates:
            return None
        path = url.raw_path.partition(b"?")[0].decode("latin-1")
        if "%" in path:  # an encoded slash does not separate segments
            path = unquote(path.replace("%2F", "%252F").replace("%2f", "%252F"))
        if len(path) > MAX_PATH_LENGTH:
            return None
        match = self._pattern.fullmatch(path)
        return None if match is None or match.lastindex is None else self._templates[match.lastindex - 1]


def _pattern(template: str) -> str:
    parts = re.split(r"(\{[^{}/]*\})", template)
    return "".join(
        re.escape(part) if at % 2 == 0 else ".+" if part.endswith(":path}") else "[^/]+"
        for at, part in enumerate(parts)
    )


MAX_URL_LENGTH: Final = 2048
"""Characters of a URL that are reported."""

MAX_SIZE_DIGITS: Final = 19
"""A size with as many digits may not be an integer of OTLP, and is not reported."""

_NONE: Final[dict[str, Any]] = {}
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class CallLabels(NamedTuple):
    """Name and labels of a call. Cached and shared by all calls that have the same."""

    name: str
    labels: dict[str, str]
    method: str
    template: str | None
    redactor: Redactor


class HttpCall(ExternalCall):
    """One call, including redirects and requests repeated by an `auth`.

    `request` is the last request sent, `sends` the number of requests, `host` that of the first. `received` is the size
    of the body as received, in bytes; None if it was not read to its end. `extensions` are those of the response.
    `client` is the `ObservedClient`, `url` that of the first request.
    """

    __slots__ = (
        "_call_labels",
        "_sent",
        "client",
        "extensions",
        "host",
        "received",
        "request",
        "sends",
        "status_code",
        "url",
    )

    sends_http = True

    def __init__(
        self, reporter: OperationReporter, client: object, call_labels: CallLabels, request: httpx.Request, host: str
    ) -> None:
        Operation.__init__(self, reporter, "external", call_labels.name, call_labels.labels)
        self._propagation = None
        self._call_labels = call_labels
        self.client = client
        self.request: httpx.Request | None = request
        self.url = request.url
        self.host = host
        self.sends = 0
        self.status_code = 0
        self.received: int | None = None
        self.extensions: dict[str, Any] = _NONE
        self._sent: tuple[httpx.URL, str, httpx.Headers, dict[str, Any]] | None = None

    @property
    def has_otel_details(self) -> bool:  # type: ignore[override]
        """Whether the details are those of `_attributes`, redacted by no rule of the user."""
        return self._given is None and self._call_labels.redactor.is_default

    @property
    def details(self) -> dict[str, Any]:
        """The attributes of the span and the log line, built when one of them is written."""
        details: dict[str, Any] = self._given or {}
        request = self.request
        if request is not None:
            details.update(self._attributes(request.url, request.method, request.headers, self.extensions))
        elif self._sent is not None:
            details.update(self._attributes(*self._sent))
            self._sent = None
        self._given = details
        return details

    def _attributes(self, url: httpx.URL, method: str, headers: httpx.Headers, extensions: Any) -> dict[str, Any]:
        """Return short attributes of OpenTelemetry's types, with secrets redacted."""
        labels = self._call_labels
        host, port = labels.redactor.text(url.host), url.port
        attributes: dict[str, Any] = {
            "peer.service": self.labels["service"],
            "http.request.method": labels.method,
            "server.address": host,
            "url.full": redact_url(url, host, labels.redactor),
        }
        if port is not None or url.scheme in _PORTS:
            attributes["server.port"] = port or _PORTS[url.scheme]
        if labels.method not in KNOWN_METHODS:
            attributes["http.request.method_original"] = labels.redactor.text(str(method)[:MAX_METHOD_LENGTH])
        if labels.template is not None:
            attributes["url.template"] = labels.template
        if self.sends > 1:
            attributes["http.request.resend_count"] = self.sends - 1
        size = headers.get("content-length", "")
        if size.isdecimal() and len(size) < MAX_SIZE_DIGITS:
            attributes["http.request.body.size"] = int(size)
        if self.status_code:
            attributes["http.response.status_code"] = self.status_code
        version = extensions.get("http_version", b"")
        if version:
            attributes["network.protocol.version"] = version[:MAX_METHOD_LENGTH].decode("latin-1").removeprefix("HTTP/")
        if self.received is not None:
            attributes["http.response.body.size"] = self.received
        return attributes

    def close(self, exc: BaseException | None = None) -> None:
        """End the call and release the request."""
        if self.ended:
            return
        if exc is not None:
            self.outcome, self.error_type = "", None  # of a status received before the body failed
        Operation.close(self, exc)
        request, self.request = self.request, None
        if request is not None and self._given is None:  # the span may still be exported; the body is not held for it
            version = self.extensions.get("http_version")
            self._sent = request.url, request.method, request.headers, {"http_version": version} if version else _NONE
        self.extensions = _NONE


def redact_url(url: httpx.URL, host: str, redactor: Redactor) -> str:
    """Return a URL without user, password and fragment, with path and query redacted and the path truncated.

    `host` is the redacted host.
    """
    path = redactor.raw_path(url.raw_path.partition(b"?")[0].decode("latin-1"))[:MAX_PATH_LENGTH]
    query = f"?{redactor.query(url.query)}" if url.query else ""
    authority = url.netloc.decode("latin-1") if host == url.host else host
    return f"{url.scheme}://{authority}{path}{query}"[:MAX_URL_LENGTH]
