"""`HttpCall`: the operation of one call by an httpx client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from fastapi_observe.clients.http.external import ExternalCall
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import KNOWN_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx

    from fastapi_observe.records.operation import OperationReporter
    from fastapi_observe.redaction.redactor import Redactor

MAX_PATH_LENGTH: Final = 1024
"""Characters of a path that are reported. Longer paths match no template."""


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

    def find(self, raw_path: bytes) -> str | None:
        """Return the template that matches the path of a URL, as sent, or None."""
        if not self._templates:
            return None
        path = raw_path.partition(b"?")[0].decode("latin-1")
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


MAX_METHOD_LENGTH: Final = 32
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
    `client` is the `ObservedClient`.
    """

    __slots__ = ("_call_labels", "client", "extensions", "host", "received", "request", "sends", "status_code")

    def __init__(
        self, reporter: OperationReporter, client: object, call_labels: CallLabels, request: httpx.Request, host: str
    ) -> None:
        Operation.__init__(self, reporter, "external", call_labels.name, call_labels.labels)
        self._propagation = None
        self._call_labels = call_labels
        self.client = client
        self.request: httpx.Request | None = request
        self.host = host
        self.sends = 0
        self.status_code = 0
        self.received: int | None = None
        self.extensions: dict[str, Any] = _NONE

    @property
    def details(self) -> dict[str, Any]:
        """The attributes of the span and the log line, built when one of them is written."""
        details: dict[str, Any] = self._given or {}
        if self.request is not None:
            details.update(self._attributes(self.request))
        self._given = details
        return details

    def _attributes(self, request: httpx.Request) -> dict[str, Any]:
        url, labels = request.url, self._call_labels
        attributes: dict[str, Any] = {
            "peer.service": self.labels["service"],
            "http.request.method": labels.method,
            "server.address": url.host,
            "server.port": url.port or _PORTS.get(url.scheme),
            "url.full": redact_url(url, labels.redactor),
        }
        if labels.method not in KNOWN_METHODS:
            attributes["http.request.method_original"] = str(request.method)[:MAX_METHOD_LENGTH]
        if labels.template is not None:
            attributes["url.template"] = labels.template
        if self.sends > 1:
            attributes["http.request.resend_count"] = self.sends - 1
        size = request.headers.get("content-length", "")
        if size.isdecimal():
            attributes["http.request.body.size"] = int(size)
        if self.status_code:
            attributes["http.response.status_code"] = self.status_code
        version = self.extensions.get("http_version", b"")
        if version:
            attributes["network.protocol.version"] = version.decode("latin-1").removeprefix("HTTP/")
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
        self.request = None
        self.extensions = _NONE


def redact_url(url: httpx.URL, redactor: Redactor) -> str:
    """Return a URL without user, password and fragment, with path and query redacted and the path truncated."""
    path = redactor.raw_path(url.raw_path.partition(b"?")[0].decode("latin-1"))[:MAX_PATH_LENGTH]
    query = f"?{redactor.query(url.query)}" if url.query else ""
    return f"{url.scheme}://{url.netloc.decode('latin-1')}{path}{query}"
