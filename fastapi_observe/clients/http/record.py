"""`HttpCall`: the record of one call by an httpx client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from fastapi_observe.clients.http.external import ExternalCall
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import KNOWN_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from fastapi_observe.records.operation import OperationReporter
    from fastapi_observe.redaction.redactor import Redactor

MAX_PATH_LENGTH: Final = 1024
"""Characters of a path that are shown, and that a template is looked for in."""


class PathTemplates:
    """The path templates of one client; the first that fits names a call.

    `{name}` stands for one segment, `{name:path}` for any number of them. `prefix` is the path of the client's base
    URL: templates fit behind it too.
    """

    def __init__(self, templates: Iterable[str], prefix: str = "") -> None:
        if isinstance(templates, str):
            raise TypeError(f'templates is a str; pass a list of them: templates=["{templates}"]')
        self._templates = tuple(templates)
        for template in self._templates:
            if not isinstance(template, str) or not template.startswith("/"):
                raise ValueError(f"{template!r:.80} is no path template; write it like /invoices/{{id}}")
        choices = "|".join(f"({_pattern(template)})" for template in self._templates)
        self._pattern = re.compile(f"(?:{re.escape(prefix.rstrip('/'))})?(?:{choices})")

    def find(self, raw_path: bytes) -> str | None:
        """Return the template of the path of a URL, as it is sent, or None."""
        if not self._templates:
            return None
        path = raw_path.partition(b"?")[0].decode("latin-1")
        if "%" in path:  # an encoded slash is part of its segment
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


class Url(Protocol):
    """What is asked of a URL: of httpx and httpx2 alike."""

    @property
    def scheme(self) -> str:
        """`https`."""

    @property
    def host(self) -> str:
        """Lower case, without the brackets of IPv6."""

    @property
    def port(self) -> int | None:
        """None if it is the scheme's."""

    @property
    def netloc(self) -> bytes:
        """Host and port, never user and password."""

    @property
    def raw_path(self) -> bytes:
        """Path and query, as sent."""

    @property
    def query(self) -> bytes:
        """Without `?`."""


class Request(Protocol):
    """What is asked of a request: of httpx and httpx2 alike."""

    method: str

    @property
    def url(self) -> Url:
        """Where it goes."""

    @property
    def headers(self) -> MutableMapping[str, str]:
        """What goes along."""

    @property
    def extensions(self) -> Any:
        """A mapping; `template` of it is ours."""


class CallLabels(NamedTuple):
    """How a call is called."""

    name: str
    labels: dict[str, str]
    method: str
    template: str | None
    redactor: Redactor


class HttpCall(ExternalCall):
    """One logical call: redirects and what an `auth` sends again are part of it.

    `request` is what was sent last, `sends` how often something was sent, `host` the one that was asked first.
    `received` is how many bytes the body had on the wire; None if it was not read to its end. `extensions` are those
    of the answer. `client` is the client, as one app observes it.
    """

    __slots__ = ("_named", "client", "extensions", "host", "received", "request", "sends", "status_code")

    def __init__(
        self, reporter: OperationReporter, client: object, named: CallLabels, request: Request, host: str
    ) -> None:
        Operation.__init__(self, reporter, "external", named.name, named.labels)
        self._propagation = None
        self._named = named
        self.client = client
        self.request: Request | None = request
        self.host = host
        self.sends = 0
        self.status_code = 0
        self.received: int | None = None
        self.extensions: dict[str, Any] = _NONE

    @property
    def details(self) -> dict[str, Any]:
        """What the span and a line say, put together when they want it."""
        given: dict[str, Any] = self._given or {}
        if self.request is not None:
            given.update(self._facts(self.request))
        self._given = given
        return given

    def _facts(self, request: Request) -> dict[str, Any]:
        url, named = request.url, self._named
        facts: dict[str, Any] = {
            "peer.service": self.labels["service"],
            "http.request.method": named.method,
            "server.address": url.host,
            "server.port": url.port or _PORTS.get(url.scheme),
            "url.full": redact_url(url, named.redactor),
        }
        if named.method not in KNOWN_METHODS:
            facts["http.request.method_original"] = str(request.method)[:MAX_METHOD_LENGTH]
        if named.template is not None:
            facts["url.template"] = named.template
        if self.sends > 1:
            facts["http.request.resend_count"] = self.sends - 1
        size = request.headers.get("content-length", "")
        if size.isdecimal():
            facts["http.request.body.size"] = int(size)
        if self.status_code:
            facts["http.response.status_code"] = self.status_code
        version = self.extensions.get("http_version", b"")
        if version:
            facts["network.protocol.version"] = version.decode("latin-1").removeprefix("HTTP/")
        if self.received is not None:
            facts["http.response.body.size"] = self.received
        return facts

    def close(self, exc: BaseException | None = None) -> None:
        """End; let go of the request."""
        if self.ended:
            return
        if exc is not None:
            self.outcome, self.error_type = "", None  # a status that came before is not how it ended
        Operation.close(self, exc)
        self.request = None
        self.extensions = _NONE


def redact_url(url: Url, redactor: Redactor) -> str:
    """Return a URL without user, password and fragment, its path cut and redacted, its query redacted."""
    path = redactor.raw_path(url.raw_path.partition(b"?")[0].decode("latin-1"))[:MAX_PATH_LENGTH]
    query = f"?{redactor.query(url.query)}" if url.query else ""
    return f"{url.scheme}://{url.netloc.decode('latin-1')}{path}{query}"
