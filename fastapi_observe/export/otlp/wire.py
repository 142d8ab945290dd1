r"""OTLP in protobuf's wire format: what all signals share, from a single value to a whole request.

Written by hand because encoding is the largest cost of a sampled span: OpenTelemetry's encoder builds protobuf objects
first and takes about five times as long for the same bytes. Field numbers are those of opentelemetry-proto 1.x. A tag
byte is `number << 3 | wire type`: `b"\x0a"` is field 1 with a length, `b"\x12"` field 2.
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
"""Keys, and pairs of a key and a short string or a small number, whose bytes are cached."""

MAX_CACHED_STRING_LENGTH: Final = 64
"""Characters of a cached string: a short one is likely to be repeated."""

CACHED_NUMBERS: Final = range(1 << 16)
"""Numbers that are cached: statuses, ports (a client's is that of its connection) and most sizes."""

MAX_VALUES: Final = 1024
"""Elements of a sequence or mapping that are sent, so that one attribute cannot delay all others."""

MAX_ATTRIBUTE_DEPTH: Final = 8
"""Levels of nested values. Deeper ones are sent as strings."""

MIN_INT64: Final = -(2**63)
MAX_INT64: Final = 2**63 - 1

DOUBLE: Final = struct.Struct("<d").pack
FIXED64: Final = struct.Struct("<Q").pack
FIXED32: Final = struct.Struct("<I").pack

_SMALL: Final = tuple(bytes((n,)) for n in range(128))


def varint(number: int) -> bytes:
    """Encode an integer; a negative one as its 64-bit two's complement."""
    if 0 <= number < 128:  # noqa: PLR2004 - seven bits fit in a byte
        return _SMALL[number]
    if 0 < number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    if 0 < number < 1 << 21:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
    if number < 0:
        number += 1 << 64
    out = bytearray()
    while number > 127:  # noqa: PLR2004
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_string(value: str) -> bytes:
    """Encode a string. A lone surrogate, which is not valid UTF-8, is written as an escape."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace")


def length_prefixed(data: bytes) -> bytes:
    """Return `data` with its length before it."""
    size = len(data)
    return (_SMALL[size] if size < 128 else varint(size)) + data  # noqa: PLR2004 - as in `varint`, without its call


def encode_int(value: int) -> bytes:
    """Encode an AnyValue that is an integer; as a string if it does not fit into 64 bits."""
    if MIN_INT64 <= value <= MAX_INT64:
        return b"\x18" + varint(value)
    return b"\x0a" + length_prefixed(encode_string(str(value)))


def encode_any_value(value: Any, depth: int = 0) -> bytes:
    """Encode an AnyValue. A value without an OTLP type is sent as a string."""
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
        case Mapping() if depth < MAX_ATTRIBUTE_DEPTH:
            pairs = [key_value(str(key), element, depth + 1) for key, element in islice(value.items(), MAX_VALUES)]
            encoded = b"\x32" + length_prefixed(b"".join(b"\x0a" + length_prefixed(pair) for pair in pairs))
        case Sequence() if depth < MAX_ATTRIBUTE_DEPTH:
            elements = [encode_any_value(element, depth + 1) for element in islice(value, MAX_VALUES)]
            encoded = b"\x2a" + length_prefixed(b"".join(b"\x0a" + length_prefixed(element) for element in elements))
        case _:
            encoded = b"\x0a" + length_prefixed(encode_string(str(value)))
    return encoded


def key_value(key: str, value: Any, depth: int = 0) -> bytes:
    """Encode a KeyValue."""
    return b"\x0a" + length_prefixed(encode_string(key)) + b"\x12" + length_prefixed(encode_any_value(value, depth))


class RequestEncoder:
    """Encodes the items of one signal, and requests of them. Base class of the encoders of all signals.

    `resource` returns the current resource. The bytes of the resource and of scopes are cached by the identity of these
    objects.
    """

    def __init__(self, resource: Callable[[], Resource]) -> None:
        self.attributes = Attributes()
        self._resource = resource
        self._encoded_resource: tuple[Resource, tuple[bytes, bytes]] | None = None
        self._scopes: dict[int, tuple[Any, tuple[bytes, bytes]]] = {}

    def encode(self, item: Any) -> tuple[Any, bytes]:
        """Return the scope of an item, and the item as a field of the scope's message."""
        raise NotImplementedError

    def request(self, items: Iterable[tuple[Any, bytes, int]]) -> bytes:
        """Return a request of encoded items: the resource, and each scope with its items."""
        resource = self._resource()
        if self._encoded_resource is None or self._encoded_resource[0] is not resource:
            self._encoded_resource = resource, encode_resource(resource)
        groups: dict[int, list[bytes]] = {}
        scopes = self._scopes
        for scope, data, _ in items:
            at = id(scope)
            if at not in groups:
                groups[at] = []
                if at not in scopes:
                    scopes[at] = scope, encode_scope(scope)  # holds the scope, so that its id is not reused
            groups[at].append(data)
        return encode_request(self._encoded_resource[1], [(scopes[at][1], group) for at, group in groups.items()])


class Attributes:
    """Encodes attributes. Caches the bytes of keys, and of pairs that are likely to be repeated."""

    __slots__ = ("_keys", "_pairs")

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._pairs: dict[tuple[str, Any], bytes] = {}

    def encode(self, tag: bytes, attributes: Mapping[str, Any]) -> bytes:
        """Encode each pair as a field `tag` of type KeyValue."""
        pairs, parts = self._pairs, []
        for pair in attributes.items():
            kind = type(pair[1])
            # No other types: a dict would take True and 1.0 for 1.
            part = pairs.get(pair) if kind is str or kind is int else None
            parts.append(self._pair(*pair) if part is None else part)
        return tag + tag.join(parts) if parts else b""

    def _pair(self, key: str, value: Any) -> bytes:
        """Encode a pair, and cache it if it is likely to be repeated."""
        head = self._keys.get(key)
        if head is None:
            if len(self._keys) >= MAX_CACHED_ITEMS:
                self._keys.clear()
            head = self._keys[key] = b"\x0a" + length_prefixed(encode_string(key)) + b"\x12"
        kind = type(value)
        pair = length_prefixed(head + length_prefixed(encode_int(value) if kind is int else encode_any_value(value)))
        if (kind is str and len(value) <= MAX_CACHED_STRING_LENGTH) or (kind is int and value in CACHED_NUMBERS):
            if len(self._pairs) >= MAX_CACHED_ITEMS:
                self._pairs.clear()
            self._pairs[key, value] = pair
        return pair


def encode_resource(resource: Resource) -> tuple[bytes, bytes]:
    """Return the fields of a ResourceSpans, ResourceLogs or ResourceMetrics before and after its scopes."""
    body = Attributes().encode(b"\x0a", resource.attributes)
    schema = resource.schema_url
    return b"\x0a" + length_prefixed(body), b"\x1a" + length_prefixed(encode_string(schema)) if schema else b""


def encode_scope(scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
    """Return the fields of a ScopeSpans, ScopeLogs or ScopeMetrics before and after its items."""
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
    """Return a request: the resource, and each scope with its items, which include their tags and lengths."""
    parts = [resource[0]]
    for (before, after), items in scopes:
        size = len(before) + len(after) + sum(map(len, items))
        parts += (b"\x12", varint(size), before, *items, after)
    parts.append(resource[1])
    return b"\x0a" + varint(sum(map(len, parts))) + b"".join(parts)
