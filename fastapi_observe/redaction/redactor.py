"""`Redactor`: what may be shown of texts, queries, paths, headers, addresses, and of whatever is logged."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from fastapi_observe.redaction.addresses import (
    ADDRESS_HEADERS,
    AUTHORITY,
    MAX_ADDRESS_LENGTH,
    MAX_PORT,
    SECRET_HEADER_WORDS,
    SECRET_HEADERS,
    truncate_to_network,
)
from fastapi_observe.redaction.names import SecretNames
from fastapi_observe.redaction.patterns import PLAIN_ID, PLAIN_PATH, REDACTED
from fastapi_observe.redaction.routes import SecretRoutes, secret_segments
from fastapi_observe.redaction.text import MARGIN, MAX_TEXT_LENGTH, TextRedactor
from fastapi_observe.redaction.values import (
    ELLIPSIS,
    MAX_CHARACTERS,
    MAX_LARGE_CONTAINER_MEMBERS,
    MAX_MEMBERS,
    MIN_CARD_NUMBER,
    ValueRedactor,
    redact_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_PATH_LENGTH: Final = 1024
MAX_USER_AGENT_LENGTH: Final = 256
"""Characters of a path and of a user agent that are shown anywhere."""

MAX_FIELD_NAME_LENGTH: Final = 256
"""Characters of the name of a field."""

_MAX_SCANNED_LENGTH: Final = MAX_PATH_LENGTH + MARGIN
MAX_CACHED_TEXTS: Final = 1024
MAX_CACHED_LENGTH: Final = 256
"""Texts of clients (paths, user agents, addresses) whose answer is remembered, and the characters of one."""

_PLAIN_PATH: Final = PLAIN_PATH.fullmatch
_PLAIN_ID: Final = PLAIN_ID.fullmatch
_UNKNOWN: Final = ("", None)
_UNROUTED: Final = frozenset({"unmatched", "redirect"})
_REST: Final = "/{path}"
_ASKS_ROUTES: Final = (-1,)
_PII: Final = frozenset({"user.email", "enduser.id"})
_ADDRESSES: Final = frozenset({"client.address", *ADDRESS_HEADERS})


class Redactor(TextRedactor):
    """Made once from the settings, and given to every place that shows a text.

    Every option of the settings that says what may be shown ends here. Answers about short texts of clients that come
    again and again are remembered, so that a request with nothing to hide costs a look into a dict or two. `templates`
    lists those of the app; it is asked once, at the first request.
    """

    __slots__ = (
        "_addresses",
        "_agents",
        "_hosts",
        "_is_quick",
        "_paths",
        "_plain_heads",
        "_plain_paths",
        "_routes",
        "_secret_routes",
        "_shown_names",
        "_special",
        "_templates",
        "capture_pii",
    )

    def __init__(  # noqa: PLR0913 - one for each option
        self,
        *,
        capture_query_parameters: Iterable[str] = (),
        capture_pii: bool = False,
        names: Iterable[str] = (),
        patterns: Iterable[str] = (),
        function: Callable[[str], Any] | None = None,
        faults: Callable[[str, BaseException], None] | None = None,
        templates: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        super().__init__(SecretNames(names), capture_query_parameters, patterns, function, faults)
        self._is_quick = not (self._patterns or self._function or self._names.more)
        self.capture_pii = capture_pii
        self._paths: dict[str, str] = {}
        self._plain_paths: set[str] = set()
        self._plain_heads: set[str] = set()  # what stands before an id, with its `/`
        self._agents: dict[bytes, str] = {}
        self._addresses: dict[str, str] = {}
        self._hosts: dict[bytes, tuple[str, int | None] | None] = {}
        self._routes: dict[str, tuple[int, ...]] = {}
        self._templates = templates
        self._shown_names: dict[str, str] = {}
        self._secret_routes: SecretRoutes | None = None
        self._special = frozenset() if capture_pii else _PII | _ADDRESSES

    @classmethod
    def from_settings(
        cls,
        settings: Any,
        faults: Callable[[str, BaseException], None] | None = None,
        templates: Callable[[], Iterable[str]] = tuple,
    ) -> Redactor:
        """Make the redactor of the options of `ObserveSettings`."""
        return cls(
            templates=templates,
            capture_query_parameters=settings.capture_query_parameters,
            capture_pii=settings.capture_pii,
            names=settings.redact_names,
            patterns=settings.redact_patterns,
            function=settings.redact,
            faults=faults,
        )

    def name(self, name: str) -> str:
        """Return the name of an operation, a service or an exception class that may be shown and be a label."""
        known = self._shown_names.get(name)
        if known is None:
            known = self.text(name)
            if len(name) <= MAX_CACHED_LENGTH:
                if len(self._shown_names) >= MAX_CACHED_TEXTS:
                    self._shown_names.clear()
                self._shown_names[name] = known
        return known

    # What is logged

    def is_secret_name(self, name: str) -> bool:
        """Tell whether what stands under this name is secret."""
        return self._names.hides(name)

    def value_for_name(self, name: str, value: Any) -> Any:
        """Return what stands for a value because of its name; the value itself if the name says nothing against it."""
        if self._names.hides(name):
            return value if value is None or value is True or value is False or value == "" else REDACTED
        if self._special and isinstance(value, str) and name.lower().replace("_", "-") in self._special:
            if name.lower() in _PII:
                return REDACTED
            return self.address(value) if name.lower() == "client.address" else self.header(name, value)
        return value

    def value(self, value: Any) -> Any:
        """Return a copy of any object that may be shown: names in it count, and texts in it."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is float or kind is bool or value is None or (kind is int and value < 10**12):
            return value
        return redact_value(self, value)

    def fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return fields that may be shown: the same dict if there is nothing to hide, and not too much of it."""
        if len(fields) > MAX_MEMBERS:
            fields = dict(islice(fields.items(), MAX_LARGE_CONTAINER_MEMBERS))
        kept = fields
        left, walk, has_long = MAX_CHARACTERS, None, False
        for name, value in fields.items():
            label = name if type(name) is str else str(name)
            if len(label) > MAX_FIELD_NAME_LENGTH:
                has_long = True
            wanted = self.value_for_name(label, value)
            if wanted is value:
                kind = type(value)
                if kind is str:
                    wanted = self.text(value) if left > 0 else ELLIPSIS
                    left -= min(len(value), MAX_TEXT_LENGTH)
                elif not (kind is float or kind is bool or value is None or (kind is int and value < MIN_CARD_NUMBER)):
                    walk = walk or ValueRedactor(self)
                    wanted = walk.redact_value(value)
            if wanted is not value:
                if kept is fields:
                    kept = dict(fields)
                kept[name] = wanted
        return {str(name)[:MAX_FIELD_NAME_LENGTH]: value for name, value in kept.items()} if has_long else kept

    # What requests are made of

    def host(self, authority: bytes) -> tuple[str, int | None] | None:
        """Read the `Host` of a request; None if it is no plain host and port, or if there is something to hide."""
        known = self._hosts.get(authority, _UNKNOWN)
        if known is _UNKNOWN:
            match = AUTHORITY.fullmatch(authority.decode("latin-1"))
            known = None
            if match is not None and self.text(match["host"]) == match["host"]:
                port = int(match["port"]) if match["port"] else None
                if port is None or port <= MAX_PORT:
                    known = match["host"].strip("[]"), port
            if len(authority) <= MAX_CACHED_LENGTH:
                if len(self._hosts) >= MAX_CACHED_TEXTS:
                    self._hosts.clear()
                self._hosts[authority] = known
        return known

    def is_plain_path(self, path: str) -> bool:
        """Tell, at once, that a path has nothing to hide, nor anything but small letters, digits and `/._~-`."""
        if len(path) > _MAX_SCANNED_LENGTH:
            path = path[:_MAX_SCANNED_LENGTH]
        if path in self._plain_paths:
            return True
        last = path.rfind("/") + 1
        if path[:last] in self._plain_heads and _PLAIN_ID(path, last) is not None:
            return True
        if not self._is_quick or _PLAIN_PATH(path) is None:
            return False
        if "token" in path or "pass" in path or "secret" in path or "key" in path or "otp" in path or "jwt" in path:
            return False
        if len(path) <= MAX_CACHED_LENGTH:  # the first ones stay: a client's inventions would only push each other out
            if last and len(self._plain_heads) < MAX_CACHED_TEXTS and _PLAIN_ID(path, last) is not None:
                self._plain_heads.add(path[:last])
            if len(self._plain_paths) < MAX_CACHED_TEXTS:
                self._plain_paths.add(path)
        return True

    def path(self, path: str) -> str:
        """Return a path that may be shown: decoded, as it stands in the ASGI scope; at most 1,152 characters."""
        if len(path) > _MAX_SCANNED_LENGTH:
            path = path[:_MAX_SCANNED_LENGTH]
        if self.is_plain_path(path):
            return path
        known = self._paths.get(path)
        if known is None:
            known = self.text(self.hide_secret_segments(path))
            if len(path) <= MAX_CACHED_LENGTH:
                if len(self._paths) >= MAX_CACHED_TEXTS:
                    self._paths.clear()
                self._paths[path] = known
        return known

    def raw_path(self, path: str, judge: Callable[[str], str] | None = None) -> str:
        """Return a percent-encoded path that may be shown; `judge` is `path` unless another is given."""
        judge = judge or self.path
        shown = judge(path)
        if "%" in path:
            plain = unquote(path[:_MAX_SCANNED_LENGTH], "latin-1")
            decoded = judge(plain)
            if decoded != plain:
                return decoded
        return shown

    def route_path(self, path: str, endpoint: str) -> str:
        """Return the path of a request that a route template answered: parameters with secret names are hidden too."""
        hidden = self._routes.get(endpoint)
        if hidden is None:
            hidden = self._find_secret(endpoint)
        if hidden is _ASKS_ROUTES:
            return self.unmatched_path(path)
        return self._hide_parameters(path, endpoint, hidden) if hidden else self.path(path)

    def has_secret_parameter(self, endpoint: str) -> bool:
        """Tell whether a route template has a parameter with a secret name."""
        hidden = self._routes.get(endpoint)
        return bool(self._find_secret(endpoint) if hidden is None else hidden)

    def unmatched_path(self, path: str) -> str:
        """Return the path of a request that no route has answered, yet or at all.

        Hidden is what stands where a template of the app has a secret parameter: a router that redirects, or a
        middleware that answers itself, has seen the secret too.
        """
        secret = self._secret_routes
        if secret is None:
            secret = self._find_secret_routes()
        return self.path(secret.hide(path[:_MAX_SCANNED_LENGTH])) if secret else self.path(path)

    def has_secret_routes(self) -> bool:
        """Tell whether `unrouted_path` may hide what a route that answers would not."""
        return bool(self._find_secret_routes() if self._secret_routes is None else self._secret_routes)

    def _find_secret_routes(self) -> SecretRoutes:
        self._secret_routes = SecretRoutes(self._templates(), self._names.hides_in_text)
        return self._secret_routes

    def _find_secret(self, endpoint: str) -> tuple[int, ...]:
        """Return which segments of a template are secret; `_ASKS_ROUTES` if no route answered, or a mount's own 404."""
        found: tuple[int, ...]
        if endpoint in _UNROUTED or endpoint.endswith(_REST):
            found = _ASKS_ROUTES if self.has_secret_routes() else ()
        else:
            found = secret_segments(endpoint, self._names.hides_in_text)
        if len(self._routes) >= MAX_CACHED_TEXTS:
            self._routes.clear()
        self._routes[endpoint] = found
        return found

    def _hide_parameters(self, path: str, endpoint: str, hidden: tuple[int, ...]) -> str:
        template, segments = endpoint.split("/"), path.split("/")
        more = len(segments) - len(template)
        for start in (0, more):  # a server may keep a prefix for itself, or the last parameter take several segments
            aligned = zip(template[1:], segments[start + 1 :], strict=False)
            if more >= 0 and all("{" in named or named == segment for named, segment in aligned):
                for at in hidden:
                    last = at == len(template) - 1
                    segments[start + at : len(segments) if last else start + at + 1] = [REDACTED]
                return self.path("/".join(segments))
        return f"/{REDACTED}"

    def user_agent(self, agent: bytes) -> str:
        """Return a user agent that may be shown, at most 256 characters."""
        known = self._agents.get(agent)
        if known is None:
            known = self.text(agent[: MAX_USER_AGENT_LENGTH + MARGIN].decode("latin-1"))[:MAX_USER_AGENT_LENGTH]
            if len(agent) <= MAX_CACHED_LENGTH:
                if len(self._agents) >= MAX_CACHED_TEXTS:
                    self._agents.clear()
                self._agents[agent] = known
        return known

    def address(self, address: Any) -> str | None:
        """Return the network of a client's address (/24, /48), or the address if `capture_pii` is set.

        At most 64 characters.
        """
        if not isinstance(address, str):  # a server may name its client as it likes
            return None if address is None else REDACTED
        if len(address) > MAX_ADDRESS_LENGTH:  # a proxy may pass on whatever a client writes
            return (
                self.text(address[: MAX_ADDRESS_LENGTH + MARGIN])[:MAX_ADDRESS_LENGTH] if self.capture_pii else REDACTED
            )
        known = self._addresses.get(address)
        if known is None:
            known = self.text(address)[:MAX_ADDRESS_LENGTH] if self.capture_pii else truncate_to_network(address)
            if len(self._addresses) >= MAX_CACHED_TEXTS:
                self._addresses.clear()
            self._addresses[address] = known
        return known

    def header(self, name: str, value: str) -> str:
        """Return the value of a header that may be shown; `name` in any case, `_` like `-`."""
        name = name.lower().replace("_", "-")
        if name in SECRET_HEADERS or self._names.hides(name) or any(part in name for part in SECRET_HEADER_WORDS):
            return REDACTED
        value = value[:MAX_TEXT_LENGTH]
        if name in ADDRESS_HEADERS and not self.capture_pii:
            return ", ".join(self._forwarded(part.strip()) for part in value.split(",")[:16])
        return self.text(value)

    def _forwarded(self, part: str) -> str:
        """Show the addresses of one part of `X-Forwarded-For`, `Forwarded` or `X-Real-IP` as their networks."""
        if "=" not in part:
            return str(self.address(part))
        pairs = [pair.partition("=") for pair in part.split(";")[:8]]
        named = [(name.strip().lower(), value.strip(' "')) for name, _, value in pairs]
        return ";".join(f"{name}={self.address(value)}" for name, value in named if name in {"for", "by"})


DEFAULT_REDACTOR: Final = Redactor()
"""What holds where no app is installed."""
