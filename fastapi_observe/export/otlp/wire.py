"""OTLP in protobuf's wire format: what every signal shares, from a single value up to a whole request.

Written by hand because encoding is the largest cost of a span that is kept: OpenTelemetry's encoder builds protobuf
objects first and takes about five times as long for the same bytes. The numbers are those of opentelemetry-proto 1.x.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

MAX_CACHED_ITEMS: Final = 2048
"""Keys, and pairs of a key and a short text, whose bytes are kept."""

MAX_CACHED_LENGTH: Final = 64
"""Characters of a text that is worth keeping: it is likely to come again."""

MAX_VALUES: Final = 1024
"""Elements of a sequence or mapping that are sent: one attribute must not hold up all others."""

MAX_DEPTH: Final = 8
"""How deep values may be nested; what is deeper is sent as text."""

INT64: Final = range(-(2**63), 2**63)

DOUBLE: Final = struct.Struct("<d").pack
FIXED64: Final = struct.Struct("<Q").pack
FIXED32: Final = struct.Struct("<I").pack

_SMALL: Final = tuple(bytes((n,)) for n in range(128))


def varint(number: int) -> bytes:
    """Encode a number; a negative one as its two's complement of 64 bits."""
    if 0 <= number < 128:  # noqa: PLR2004 - seven bits fit in a byte
        return _SMALL[number]
    if number < 0:
        number += 1 << 64
    out = bytearray()
    while number > 127:  # noqa: PLR2004
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_string(value: str) -> bytes:
    """Encode a text; half a surrogate pair, which UTF-8 has no bytes for, is written as its escape."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace")


def length_prefixed(data: bytes) -> bytes:
    """Return `data` with its length before it."""
    return varint(len(data)) + data


def encode_int(value: int) -> bytes:
    """Encode an AnyValue that is an integer; one beyond 64 bits is sent as text."""
    return b"\x18" + varint(value) if value in INT64 else b"\x0a" + length_prefixed(encode_string(str(value)))


def encode_any_value(value: Any, depth: int = 0) -> bytes:
    """Encode an AnyValue. What OTLP has no type for is sent as text."""
    match value:
        case str():
            encoded = b"\x0a" + length_prefixed(encode_string(value))
        case bool():
            encoded = b"\x10\x01" if value else b"\x10\x00"
        case int():
            encoded = encode_int(value)
        case float():
            encoded = b"\x21" + DOUBLE(value)
        case None:
            encoded = b""
        case bytes():
            encoded = b"\x3a" + length_prefixed(value)
        case Mapping() if depth < MAX_DEPTH:
            pairs = [key_value(str(key), element, depth + 1) for key, element in islice(value.items(), MAX_VALUES)]
            encoded = b"\x32" + length_prefixed(b"".join(b"\x0a" + length_prefixed(pair) for pair in pairs))
        case Sequence() if depth < MAX_DEPTH:
            elements = [encode_any_value(element, depth + 1) for element in islice(value, MAX_VALUES)]
            encoded = b"\x2a" + length_prefixed(b"".join(b"\x0a" + length_prefixed(element) for element in elements))
        case _:
            encoded = b"\x0a" + length_prefixed(encode_string(str(value)))
    return encoded


def key_value(key: str, value: Any, depth: int = 0) -> bytes:
    """Encode a KeyValue."""
    return b"\x0a" + length_prefixed(encode_string(key)) + b"\x12" + length_prefixed(encode_any_value(value, depth))


class RequestEncoder:
    """Puts encoded items together to the request of any signal; `resource` says what they are about at that moment.

    Items of one scope must bring the same object along; the bytes of resource and scopes are kept.
    """

    def __init__(self, resource: Callable[[], Resource]) -> None:
        self.attributes = Attributes()
        self._resource = resource
        self._described: tuple[Resource, tuple[bytes, bytes]] | None = None
        self._scopes: dict[int, tuple[Any, tuple[bytes, bytes]]] = {}

    def request(self, entries: Iterable[tuple[Any, bytes, int]]) -> bytes:
        """Return the bytes of a request: one resource, and each scope with its items."""
        resource = self._resource()
        if self._described is None or self._described[0] is not resource:
            self._described = resource, encode_resource(resource)
        groups: dict[int, list[bytes]] = {}
        scopes = self._scopes
        for scope, data, _ in entries:
            at = id(scope)
            if at not in groups:
                groups[at] = []
                if at not in scopes:
                    scopes[at] = scope, encode_scope(scope)  # kept, so that no other takes its id
            groups[at].append(data)
        return encode_request(self._described[1], [(scopes[at][1], items) for at, items in groups.items()])


class Attributes:
    """Encodes attributes; remembers the bytes of what comes again and again."""

    __slots__ = ("_keys", "_pairs")

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._pairs: dict[tuple[str, str], bytes] = {}

    def encode(self, tag: bytes, attributes: Mapping[str, Any]) -> bytes:
        """Encode each pair as a field `tag` of type KeyValue."""
        pairs, parts = self._pairs, []
        for pair in attributes.items():
            key, value = pair
            if type(value) is str:
                part = pairs.get(pair)
                if part is None:
                    part = self._pair(key, b"\x0a" + length_prefixed(encode_string(value)))
                    if len(value) <= MAX_CACHED_LENGTH:
                        if len(pairs) >= MAX_CACHED_ITEMS:
                            pairs.clear()
                        pairs[pair] = part
            elif type(value) is int:
                part = self._pair(key, encode_int(value))
            else:
                part = self._pair(key, encode_any_value(value))
            parts.append(part)
        return tag + tag.join(parts) if parts else b""

    def _pair(self, key: str, value: bytes) -> bytes:
        head = self._keys.get(key)
        if head is None:
            if len(self._keys) >= MAX_CACHED_ITEMS:
                self._keys.clear()
            head = self._keys[key] = b"\x0a" + length_prefixed(encode_string(key)) + b"\x12"
        return length_prefixed(head + length_prefixed(value))


def encode_resource(resource: Resource) -> tuple[bytes, bytes]:
    """Encode the fields of a ResourceSpans, ResourceLogs or ResourceMetrics before and after the scopes."""
    body = Attributes().encode(b"\x0a", resource.attributes)
    schema = resource.schema_url
    return b"\x0a" + length_prefixed(body), b"\x1a" + length_prefixed(encode_string(schema)) if schema else b""


def encode_scope(scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
    """Encode the fields of a ScopeSpans, ScopeLogs or ScopeMetrics before and after the items."""
    if scope is None:
        return b"\x0a\x00", b""
    body = b"\x0a" + length_prefixed(encode_string(scope.name)) if scope.name else b""
    if scope.version:
        body += b"\x12" + length_prefixed(encode_string(scope.version))
    body += Attributes().encode(b"\x1a", scope.attributes or {})
    schema = scope.schema_url
    return b"\x0a" + length_prefixed(body), b"\x1a" + length_prefixed(encode_string(schema)) if schema else b""


def encode_request(
    resource: tuple[bytes, bytes], scopes: Iterable[tuple[tuple[bytes, bytes], Sequence[bytes]]]
) -> bytes:
    """Encode a request of any signal: one resource, and for each scope its items, which bring tag and length along."""
    parts = [resource[0]]
    for (before, after), items in scopes:
        size = len(before) + len(after) + sum(map(len, items))
        parts += (b"\x12", varint(size), before, *items, after)
    parts.append(resource[1])
    return b"\x0a" + varint(sum(map(len, parts))) + b"".join(parts)
