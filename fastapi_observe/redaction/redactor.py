"""`Redactor`: redacts strings, queries, paths, headers, addresses and logged values before they are reported."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, unquote_plus

from fastapi_observe.internal.networks import MAX_PORT
from fastapi_observe.redaction.addresses import (
    ADDRESS_HEADERS,
    AUTHORITY,
    MAX_ADDRESS_LENGTH,
    SECRET_HEADER_WORDS,
    SECRET_HEADERS,
    redact_forwarded,
    truncate_to_network,
)
from fastapi_observe.redaction.cache import BoundedCache
from fastapi_observe.redaction.names import SecretNames
from fastapi_observe.redaction.patterns import (
    CARD,
    COUNT,
    ENCODED_PERCENT,
    ENCODED_WORD,
    KEY_BEFORE_VALUE,
    LINE_VALUE,
    MAX_SCANNED_LENGTH,
    MIN_CARD_DIGITS,
    NAMES_BEFORE_VALUES,
    OPAQUE_ID,
    PLAIN_ID,
    PLAIN_PATH,
    QUERY_OF_PATH,
    REDACTED,
    SESSION_ID,
    TRIGGER_CHARACTERS,
    TUPLE_VALUES,
    UNICODE_ESCAPE,
    URL_PART,
    USERINFO,
    VALUE,
    XML_CONTENT,
    XML_ELEMENT,
    hide_after_scheme,
    hide_card,
    hide_credentials,
    hide_library_values,
    hide_values,
    hide_values_before_names,
)
from fastapi_observe.redaction.routes import SecretRoutes, hide_parameters, secret_segments
from fastapi_observe.redaction.source_code import expression_end, is_source_line
from fastapi_observe.redaction.values import (
    ELLIPSIS,
    MAX_CHARACTERS,
    MAX_LARGE_CONTAINER_MEMBERS,
    MAX_MEMBERS,
    MIN_CARD_NUMBER,
    PAIR_VALUE_KEYS,
    ValueRedactor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MARGIN: Final = 128
"""Characters that are scanned after the part that is reported: a secret that is cut is not recognized as one."""

MAX_PATH_LENGTH: Final = 1024
MAX_USER_AGENT_LENGTH: Final = 256
MAX_QUERY_BYTES: Final = 1024
MAX_FIELD_NAME_LENGTH: Final = 256
"""Characters of a path, a user agent, a query string and a field name that are reported."""

MAX_USER_PATTERN_LENGTH: Final = 2048
"""Characters of a line that the user's patterns are applied to: their time may grow with the square of the length."""

MAX_CACHED_TEXTS: Final = 1024
MAX_CACHED_TEXT_LENGTH: Final = 256
"""Remembered results for paths, user agents, hosts and addresses, and the maximum length of each."""

MAX_SCANNED_QUERY: Final = MAX_QUERY_BYTES + MARGIN
_MAX_SCANNED_PATH: Final = MAX_PATH_LENGTH + MARGIN

_is_trigger: Final = TRIGGER_CHARACTERS.search
_has_digits: Final = re.compile(r"[2-6][0-9 -]{12}").search
_is_plain_path: Final = PLAIN_PATH.fullmatch
_is_plain_id: Final = PLAIN_ID.fullmatch

_QUOTES: Final = frozenset({"'", '"', "\\"})
_LINE_NAMES: Final = ("authorization", "cookie", "phrase", "mnemonic")
"""Ends of names whose value goes on to the end of its line."""
_ID_NAMES: Final = ("session", "sessions", "sid", "tokens")
"""Ends of names whose value in a sentence is an id: `Terminating session: a1b2c3d4`, but not `session: closed`."""

_NOT_CACHED: Final = ("", None)
_WITHOUT_ROUTE: Final = frozenset({"unmatched", "redirect"})
_SUBPATH: Final = "/{path}"
_COMPARE_ROUTES: Final = (-1,)
"""Marks an endpoint without a matched route: its paths are compared with all templates of the app."""

_PII: Final = frozenset({"user.email", "enduser.id"})
_ADDRESS_FIELDS: Final = frozenset({"client.address", *ADDRESS_HEADERS})


class Redactor:
    """Redacts everything that is reported. One is made from the settings and shared by all signals.

    A string passes the built-in patterns first, then the user's `patterns`, then the user's `function`. If the
    function raises or does not return a string, the whole string is redacted and the error is counted at `redact`.

    Results for short strings that clients send repeatedly are remembered, so that a request without secrets costs a
    few dict lookups. `templates` returns the route templates of the app; it is called once, at the first request.
    """

    __slots__ = (
        "_addresses",
        "_captured_parameters",
        "_captures_all",
        "_function",
        "_hidden_parameters",
        "_hosts",
        "_internal_errors",
        "_labels",
        "_names",
        "_paths",
        "_patterns",
        "_personal_fields",
        "_plain_heads",
        "_plain_paths",
        "_routes",
        "_secret_routes",
        "_templates",
        "_user_agents",
        "capture_pii",
        "has_function",
        "is_default",
    )

    def __init__(  # noqa: PLR0913 - one for each option
        self,
        *,
        capture_query_parameters: Iterable[str] = (),
        capture_pii: bool = False,
        names: Iterable[str] = (),
        patterns: Iterable[str] = (),
        function: Callable[[str], Any] | None = None,
        internal_errors: Callable[[str, BaseException], None] | None = None,
        templates: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._names = SecretNames(names)
        # A secret name stays secret: a user who captures `token` may not know every parameter of that name.
        self._captured_parameters = frozenset(
            name for name in capture_query_parameters if not self._names.is_secret_in_query(name)
        )
        self._captures_all = "*" in self._captured_parameters
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)
        self._function = function
        self.has_function = function is not None
        self._internal_errors = internal_errors
        self.is_default = not (self._patterns or self._function or self._names.extra)
        self.capture_pii = capture_pii
        self._personal_fields = frozenset() if capture_pii else _PII | _ADDRESS_FIELDS
        self._templates = templates
        self._secret_routes: SecretRoutes | None = None
        limits = MAX_CACHED_TEXTS, MAX_CACHED_TEXT_LENGTH
        self._labels: BoundedCache[str, str] = BoundedCache(*limits)
        self._paths: BoundedCache[str, str] = BoundedCache(*limits)
        self._user_agents: BoundedCache[bytes, str] = BoundedCache(*limits)
        self._addresses: BoundedCache[str, str] = BoundedCache(*limits)
        self._hosts: BoundedCache[bytes, tuple[str, int | None] | None] = BoundedCache(*limits)
        self._hidden_parameters: BoundedCache[str, str] = BoundedCache(*limits)
        self._routes: BoundedCache[str, tuple[int, ...]] = BoundedCache(*limits)
        self._plain_paths: set[str] = set()
        self._plain_heads: set[str] = set()  # the part of a path before an id, with its `/`

    @classmethod
    def from_settings(
        cls,
        settings: Any,
        internal_errors: Callable[[str, BaseException], None] | None = None,
        templates: Callable[[], Iterable[str]] = tuple,
    ) -> Redactor:
        """Return a redactor with the options of `ObserveSettings`."""
        return cls(
            capture_query_parameters=settings.capture_query_parameters,
            capture_pii=settings.capture_pii,
            names=settings.redact_names,
            patterns=settings.redact_patterns,
            function=settings.redact,
            internal_errors=internal_errors,
            templates=templates,
        )

    # Strings

    def text(self, text: str) -> str:
        """Return a string without what looks like a secret, and without the values of secret names.

        At most 8,192 characters.
        """
        text = self._scan(text[:MAX_SCANNED_LENGTH])
        if "%" in text or "\\u00" in text:
            decoded = ENCODED_WORD.sub(self._decode, text)
            if decoded != text:
                text = self._scan(decoded)
        if self._patterns or self._function is not None:
            text = self._apply_user_rules(text)
        return text[:MAX_SCANNED_LENGTH]

    def _scan(self, text: str) -> str:
        """Apply the built-in patterns."""
        if _is_trigger(text) is not None:
            text = hide_credentials(text)
            if ":" in text or "=" in text or '"' in text or "'" in text or "--" in text or "<" in text or "%3" in text:
                text = self._hide_named(self._hide_userinfo(hide_library_values(text)))
            if "?" in text:
                text = QUERY_OF_PATH.sub(lambda match: f"?{self.query(match[0][1:])}", text)
            if " " in text or "%20" in text:
                text = hide_after_scheme(text)
        if len(text) >= MIN_CARD_DIGITS and _has_digits(text) is not None:
            text = CARD.sub(hide_card, text)
        return text

    def _decode(self, match: re.Match[str]) -> str:
        """Return a word as it is, or decoded if only its decoded form has a secret or is a secret name."""
        word = match[0]
        if "%" not in word and "\\u00" not in word:
            return word
        decoded = unquote(ENCODED_PERCENT.sub("", UNICODE_ESCAPE.sub(r"%\1", word)))
        return decoded if self._scan(decoded) != decoded or self._names.is_secret_word(decoded) else word

    def name(self, name: str) -> str:
        """Return the name of an operation, a service or an exception class, redacted. It may be a metric label."""
        label = self._labels.get(name)
        return self._labels.remember(name, self.text(name)) if label is None else label

    def _hide_userinfo(self, text: str) -> str:
        """Hide user and password of addresses, and the secret parts of URLs."""
        if "://" in text:
            text = URL_PART.sub(self._redact_url, text)
        return USERINFO.sub(f"{REDACTED}:{REDACTED}@", text) if "@" in text else text

    def _redact_url(self, match: re.Match[str]) -> str:
        """Hide everything before the last `@` of a URL and after its first `?` or `#`, and secret segments."""
        rest = match[1]
        userinfo, at, after = rest.rpartition("@")
        account = f"{REDACTED}:{REDACTED}@" if at and (userinfo or after) else ""
        rest = after if at else rest
        rest, fragment, _ = rest.partition("#")
        rest, question_mark, query = rest.partition("?")
        host, slash, path = rest.partition("/")
        query = f"{question_mark}{self.query(query)}" if query else question_mark
        return f"://{account}{host}{self.hide_secret_segments(slash + path)}{query}{fragment and fragment + REDACTED}"

    def _hide_named(self, text: str) -> str:
        """Hide the values that follow a secret name."""
        names = self._names
        has_quoted_name = "':" in text or '":' in text or '"=' in text or "'=" in text
        lower = text.lower()
        if not has_quoted_name:
            for stem in names.stems:
                if stem in lower:
                    break
            else:
                return text
        for mark, pattern in NAMES_BEFORE_VALUES:
            if mark in lower:
                text = hide_values(text, pattern, self._named_value_end)
        if "val" in lower:
            text = hide_values_before_names(text, names.is_secret)
        if "</" in text:
            text = hide_values(text, XML_ELEMENT, self._content_end)
        return hide_values(text, KEY_BEFORE_VALUE, self._value_end)

    def _named_value_end(self, match: re.Match[str]) -> int:
        """Return the end of the value after a name in an option, a tuple or under `name` and `value`."""
        if not self._names.is_secret(match["name"]):
            return match.end()
        return _end(TUPLE_VALUES if match[0].startswith("(") else VALUE, match)

    def _content_end(self, match: re.Match[str]) -> int:
        """Return the end of the content of an XML element."""
        return _end(XML_CONTENT, match) if self._names.is_secret(match["name"]) else match.end()

    def _value_end(self, match: re.Match[str]) -> int:
        """Return the end of the value after a name and `=` or `:`, or the end of the match if it is not secret."""
        names, name, text, at = self._names, match["name"], match.string, match.end()
        if not names.is_secret_in_text(name) and not (match["before"] and names.is_secret_pair(match["before"], name)):
            if not names.is_secret(name):
                return at
            # In quotes a name is a key, not a word of a sentence, so the whole list applies.
            quote = text[match.end("name") : match.end("name") + 1]
            if quote not in _QUOTES or text[match.start("name") - 1 : match.start("name")] != quote:
                is_id = name.lower().endswith(_ID_NAMES) and not is_source_line(text, at)
                return max(_end(OPAQUE_ID, match), _end(SESSION_ID, match) if is_id else at)
        if COUNT.match(text, at) is not None and names.is_count(name):
            return at
        if is_source_line(text, at):
            return expression_end(text, at)
        return _end(LINE_VALUE if name.lower().endswith(_LINE_NAMES) else VALUE, match)

    def _apply_user_rules(self, text: str) -> str:
        for pattern in self._patterns:
            text = "\n".join(
                pattern.sub(_redact_match, line[:MAX_USER_PATTERN_LENGTH])
                for line in (text.split("\n") if len(text) > MAX_USER_PATTERN_LENGTH else (text,))
            )
        if self._function is None:
            return text
        try:
            redacted = self._function(text)
            if not isinstance(redacted, str):
                raise TypeError(f"redact returned {type(redacted).__name__}, not str")  # noqa: TRY301 - counted below
        except Exception as exc:  # noqa: BLE001 - the user's function may raise anything; nothing is certain then
            if self._internal_errors is not None:
                self._internal_errors("redact", exc)
            return REDACTED
        return redacted

    # Values and fields

    def value_for_name(self, name: str, value: Any) -> Any:
        """Return the replacement of a value because of its name, or the value itself if the name is not secret."""
        if self._names.is_secret(name):
            if value is None or value is True or value is False or value == "":
                return value
            return value if isinstance(value, int | float) and self._names.is_count(name) else REDACTED
        if self._personal_fields and isinstance(value, str):
            header = name.lower().replace("_", "-")
            if header in self._personal_fields:
                if name.lower() in _PII:
                    return REDACTED
                return self.address(value) if header == "client.address" else self.header(name, value)
        return value

    def value_in_text(self, name: str, value: Any) -> Any:
        """Return the replacement of a value that is inserted into a sentence under this name, or the value itself.

        The names are those of `text`: under an ambiguous one, only what looks like an id is secret.
        """
        names = self._names
        if isinstance(value, str | int | float) and names.is_secret(name) and not names.is_secret_in_text(name):
            text = f"{name}={str(value)[:MARGIN]}"  # what looks like an id is at the start
            return value if self.text(text) == text else REDACTED
        return self.value_for_name(name, value)

    def value(self, value: Any) -> Any:
        """Return a copy of any object without secrets, or the object itself if it has none."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is float or kind is bool or value is None or (kind is int and value < MIN_CARD_NUMBER):
            return value
        return ValueRedactor(self.text, self.value_for_name).redact_value(value)

    def fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return fields without secrets, or the same dict if there are none and it is within the limits."""
        if len(fields) > MAX_MEMBERS:
            fields = dict(islice(fields.items(), MAX_LARGE_CONTAINER_MEMBERS))
        result = fields
        characters, redactor, has_long_name = MAX_CHARACTERS, None, False
        hidden: Collection[Any] = () if PAIR_VALUE_KEYS.isdisjoint(fields) else self._hidden_by_siblings(fields)
        for name, value in fields.items():
            label = name if type(name) is str else str(name)
            if len(label) > MAX_FIELD_NAME_LENGTH:
                has_long_name = True
            redacted: Any = REDACTED if name in hidden else self.value_for_name(label, value)
            if redacted is value:
                kind = type(value)
                if kind is str:
                    redacted = self.text(value) if characters > 0 else ELLIPSIS
                    characters -= min(len(value), MAX_SCANNED_LENGTH)
                elif not (kind is float or kind is bool or value is None or (kind is int and value < MIN_CARD_NUMBER)):
                    redactor = redactor or ValueRedactor(self.text, self.value_for_name)
                    redacted = redactor.redact_value(value)
            if redacted is not value:
                if result is fields:
                    result = dict(fields)
                result[name] = redacted
        if has_long_name:
            return {str(name)[:MAX_FIELD_NAME_LENGTH]: value for name, value in result.items()}
        return result

    def _hidden_by_siblings(self, fields: dict[str, Any]) -> Collection[Any]:
        return ValueRedactor(self.text, self.value_for_name).hidden_by_siblings(fields)

    # Queries

    def query(self, query: bytes | str) -> str:
        """Return a query string with the value of each key redacted that is not in `capture_query_parameters`.

        `*` captures all keys. Secret names are never captured, and what looks like a secret is redacted in captured
        values and in keys too. Keys are compared decoded (`%70age` is `page`). `;` separates like `&`, as in some
        parsers.
        """
        text = query if isinstance(query, str) else query.decode("latin-1")
        if len(text) > MAX_SCANNED_QUERY:
            text = text[:MAX_SCANNED_QUERY]
        if ";" in text:
            text = text.replace(";", "&")
        redacted = "&".join(map(self._query_part, text.split("&"))) if "&" in text else self._query_part(text)
        return redacted if len(redacted) <= MAX_QUERY_BYTES else redacted[:MAX_QUERY_BYTES]

    def _query_part(self, part: str) -> str:
        key, equals, value = part.partition("=")
        if value:
            hidden = self._hidden_parameters.get(key)
            if hidden is not None:
                return hidden
        decoded = unquote_plus(key) if "%" in key or "+" in key else key
        is_captured = decoded in self._captured_parameters or (
            self._captures_all and bool(equals) and not self._names.is_secret_in_query(decoded, value)
        )
        if not equals:  # a value without a name: some clients send a token like this
            return part if not part or (is_captured and self._has_no_secret(part)) else REDACTED
        shown = key if self._has_no_secret(decoded) else REDACTED
        if not value or (is_captured and self._has_no_secret(value)):
            return f"{shown}={value}"
        hidden = f"{shown}={REDACTED}"
        if not (is_captured or self._captures_all or self._function):  # the same for every value
            self._hidden_parameters.remember(key, hidden)
        return hidden

    def _has_no_secret(self, text: str) -> bool:
        """Return whether a part of a query has no secret, neither as it is nor percent-decoded."""
        decoded = unquote_plus(text) if "%" in text or "+" in text else text
        return self.text(decoded) == decoded and (decoded is text or self.text(text) == text)

    # Paths

    def is_plain_path(self, path: str) -> bool:
        """Return whether a path is known, without a full scan, to have no secret and no character but `a-z0-9/._~-`."""
        if len(path) > _MAX_SCANNED_PATH:
            path = path[:_MAX_SCANNED_PATH]
        if path in self._plain_paths:
            return True
        last = path.rfind("/") + 1
        if path[:last] in self._plain_heads and _is_plain_id(path, last) is not None:
            return True
        if not self.is_default or _is_plain_path(path) is None:
            return False
        if "token" in path or "pass" in path or "secret" in path or "key" in path or "otp" in path or "jwt" in path:
            return False
        # The first ones stay: with paths that a client makes up, replacing would only evict the useful ones.
        if len(path) <= MAX_CACHED_TEXT_LENGTH:
            if last and len(self._plain_heads) < MAX_CACHED_TEXTS and _is_plain_id(path, last) is not None:
                self._plain_heads.add(path[:last])
            if len(self._plain_paths) < MAX_CACHED_TEXTS:
                self._plain_paths.add(path)
        return True

    def path(self, path: str) -> str:
        """Return a path, decoded as in the ASGI scope, without secrets. At most 1,152 characters."""
        if len(path) > _MAX_SCANNED_PATH:
            path = path[:_MAX_SCANNED_PATH]
        if self.is_plain_path(path):
            return path
        redacted = self._paths.get(path)
        if redacted is None:
            redacted = self._paths.remember(path, self.text(self.hide_secret_segments(path)))
        return redacted

    def raw_path(self, path: str, redact: Callable[[str], str] | None = None) -> str:
        """Return a percent-encoded path without secrets; `redact` is `path` by default.

        The path is returned decoded if only its decoded form has a secret.
        """
        redact = redact or self.path
        redacted = redact(path)
        if "%" in path:
            decoded = unquote(path[:_MAX_SCANNED_PATH], "latin-1")
            redacted_decoded = redact(decoded)
            if redacted_decoded != decoded:
                return redacted_decoded
        return redacted

    def hide_secret_segments(self, path: str) -> str:
        """Return a path without the segments that follow one with a secret name."""
        low = path.lower()
        has_word = "token" in low or "pass" in low or "secret" in low or "key" in low or "otp" in low or "jwt" in low
        if not (has_word or self._names.extra):
            return path
        segments = path.split("/")
        before = segments[0]
        for at in range(1, len(segments)):
            segment = segments[at]
            if segment and segment != ".":  # servers and apps may read `/token//abc` as `/token/abc`
                if self._names.hides_next_segment(before, segment):
                    segments[at] = REDACTED
                before = segment
        return "/".join(segments)

    def route_path(self, path: str, endpoint: str) -> str:
        """Return the path of a request that matched a route template, without the values of secret parameters."""
        secret = self._routes.get(endpoint)
        if secret is None:
            secret = self._find_secret_segments(endpoint)
        if secret is _COMPARE_ROUTES:
            return self.unmatched_path(path)
        return self.path(hide_parameters(path, endpoint, secret) if secret else path)

    def has_secret_parameter(self, endpoint: str) -> bool:
        """Return whether a route template has a parameter with a secret name."""
        secret = self._routes.get(endpoint)
        return bool(self._find_secret_segments(endpoint) if secret is None else secret)

    def unmatched_path(self, path: str) -> str:
        """Return the path of a request without a matched route, without secrets.

        The segments at the place of a secret parameter of any template are redacted: a router that redirects, or a
        middleware that responds itself, has received the secret too.
        """
        routes = self._secret_routes
        if routes is None:
            routes = self._find_secret_routes()
        return self.path(path if routes.is_empty else routes.hide(path[:_MAX_SCANNED_PATH]))

    def has_secret_routes(self) -> bool:
        """Return whether any route template of the app has a parameter with a secret name."""
        return not (self._find_secret_routes() if self._secret_routes is None else self._secret_routes).is_empty

    def _find_secret_routes(self) -> SecretRoutes:
        self._secret_routes = SecretRoutes(self._templates(), self._names.is_secret_in_text)
        return self._secret_routes

    def _find_secret_segments(self, endpoint: str) -> tuple[int, ...]:
        """Return the secret segments of a template; `_COMPARE_ROUTES` where no route matched, or a mount's own 404."""
        if endpoint in _WITHOUT_ROUTE or endpoint.endswith(_SUBPATH):
            return self._routes.remember(endpoint, _COMPARE_ROUTES if self.has_secret_routes() else ())
        return self._routes.remember(endpoint, secret_segments(endpoint, self._names.is_secret_in_text))

    # Clients and headers

    def host(self, authority: bytes) -> tuple[str, int | None] | None:
        """Return host and port of a `Host` header; None if it is not a plain host and port, or has a secret."""
        host = self._hosts.get(authority, _NOT_CACHED)
        if host is not _NOT_CACHED:
            return host
        host = None
        match = AUTHORITY.fullmatch(authority.decode("latin-1"))
        if match is not None and self.text(match["host"]) == match["host"]:
            port = int(match["port"]) if match["port"] else None
            if port is None or port <= MAX_PORT:
                host = match["host"].strip("[]"), port
        return self._hosts.remember(authority, host)

    def user_agent(self, agent: bytes) -> str:
        """Return a user agent without secrets. At most 256 characters."""
        redacted = self._user_agents.get(agent)
        if redacted is None:
            text = agent[: MAX_USER_AGENT_LENGTH + MARGIN].decode("latin-1")
            redacted = self._user_agents.remember(agent, self.text(text)[:MAX_USER_AGENT_LENGTH])
        return redacted

    def address(self, address: Any) -> str | None:
        """Return the network of a client address (/24, /48), or the address if `capture_pii` is set.

        At most 64 characters.
        """
        if not isinstance(address, str):  # servers may set any object as the client's host
            return None if address is None else REDACTED
        if len(address) > MAX_ADDRESS_LENGTH:  # a proxy may forward whatever the client wrote
            if not self.capture_pii:
                return REDACTED
            return self.text(address[: MAX_ADDRESS_LENGTH + MARGIN])[:MAX_ADDRESS_LENGTH]
        redacted = self._addresses.get(address)
        if redacted is None:
            redacted = self.text(address)[:MAX_ADDRESS_LENGTH] if self.capture_pii else truncate_to_network(address)
            self._addresses.remember(address, redacted)
        return redacted

    def header(self, name: str, value: str) -> str:
        """Return the value of a header without secrets. Names match in any case, with `_` or `-`."""
        name = name.lower().replace("_", "-")
        if name in SECRET_HEADERS or self._names.is_secret(name) or any(part in name for part in SECRET_HEADER_WORDS):
            return REDACTED
        value = value[:MAX_SCANNED_LENGTH]
        if name in ADDRESS_HEADERS and not self.capture_pii:
            return redact_forwarded(value, self.address)
        return self.text(value)


def _end(pattern: re.Pattern[str], match: re.Match[str]) -> int:
    """Return the end of a value after a match; the patterns of values match the empty string too."""
    return pattern.match(match.string, match.end()).end()  # type: ignore[union-attr]


def _redact_match(match: re.Match[str]) -> str:
    return REDACTED if match[0] else ""


DEFAULT_REDACTOR: Final = Redactor()
"""The redactor with default settings, for code that runs without an installed app."""
