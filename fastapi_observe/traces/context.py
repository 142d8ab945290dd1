"""`TraceContext`: a position in a trace, as a value that can be stored, sent and continued."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - a dataclass field
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fastapi_observe.records.guard import fail_safe

if TYPE_CHECKING:
    from typing import Self

_TRACE_ID_LENGTH = 32
_SPAN_ID_LENGTH = 16
RANDOM: Final = 2
"""The random flag of W3C Trace Context Level 2, for which older OpenTelemetry versions have no name."""

MAX_BAGGAGE_BYTES: Final = 8192
"""Bytes of a `baggage` header that are read, as in W3C Baggage."""
MAX_BAGGAGE_MEMBERS: Final = 64
"""Members of a `baggage` header that are read, as in W3C Baggage."""
MAX_TRACESTATE_MEMBERS: Final = 32
"""Members of a `tracestate` header. A header with more is dropped, as in W3C Trace Context."""

_KEY = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}"
_VALUE = r"[!#-+\--:<-\[\]-~]*"
_BAGGAGE = re.compile(rf"[ \t]*(?P<key>{_KEY})[ \t]*=[ \t]*(?P<value>{_VALUE})[ \t]*")
_STATE_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_STATE = re.compile(rf"(?P<key>{_STATE_KEY})=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]")


def _is_id(text: object, length: int) -> bool:
    return (
        isinstance(text, str) and len(text) == length and set(text) <= set("0123456789abcdef") and text.strip("0") != ""
    )


def well_formed_headers(carrier: dict[str, str]) -> dict[str, str]:
    """Drop malformed members of `baggage` and `tracestate` from `carrier`, and the properties of baggage; return it.

    OpenTelemetry would drop malformed members too, but with a warning for each: clients could fill the log.
    """
    if "baggage" in carrier:
        members = carrier["baggage"][:MAX_BAGGAGE_BYTES].split(",")[:MAX_BAGGAGE_MEMBERS]
        matches = [_BAGGAGE.fullmatch(member.partition(";")[0]) for member in members]
        # Without the blanks that the specification allows: OpenTelemetry before 1.45 rejects them.
        carrier["baggage"] = ",".join(f"{match['key']}={match['value']}" for match in matches if match)
    if "tracestate" in carrier:
        members = [member.strip(" \t") for member in carrier["tracestate"].split(",", MAX_TRACESTATE_MEMBERS)]
        matches = [_STATE.fullmatch(member) for member in members if member]
        keys = {match["key"] for match in matches if match}
        if len(members) > MAX_TRACESTATE_MEMBERS or len(keys) < len(matches):
            del carrier["tracestate"]
        else:  # empty members are legal; OpenTelemetry before 1.45.2 warns about them
            carrier["tracestate"] = ",".join(filter(None, members))
    return carrier


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace (W3C Trace Context and Baggage).

    `trace_id` is 32 and `span_id` 16 lower-case hexadecimal digits, neither all zero; anything else raises
    `ValueError`. `baggage` is sent with `to_headers()`. `attributes` are the caller's own values and are part of
    `to_dict()` only. `random` is the random flag of the trace id (Level 2).
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    baggage: Mapping[str, str] = field(default_factory=dict, hash=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trace_state: str = ""
    random: bool = False

    def __post_init__(self) -> None:
        for name, value, length in (
            ("trace_id", self.trace_id, _TRACE_ID_LENGTH),
            ("span_id", self.span_id, _SPAN_ID_LENGTH),
        ):
            if not _is_id(value, length):
                raise ValueError(
                    f"invalid {name} {value!r:.80}; use {length} lower-case hexadecimal digits, not all zero"
                )

    @classmethod
    def current(cls) -> Self | None:
        """Return the position of the calling code, or None outside any trace."""
        return cls.from_context(None)

    @classmethod
    def from_context(cls, context: Context | None) -> Self | None:
        """Return the position in an OpenTelemetry context (None: the current one), or None if it has no trace."""
        position = trace.get_current_span(context).get_span_context()
        if not position.is_valid:
            return None
        return cls(
            trace_id=format(position.trace_id, "032x"),
            span_id=format(position.span_id, "016x"),
            sampled=position.trace_flags.sampled,
            baggage={name: str(value) for name, value in baggage.get_all(context).items()},
            trace_state=position.trace_state.to_header(),
            random=bool(position.trace_flags & RANDOM),
        )

    @classmethod
    @fail_safe("trace_context")
    def from_headers(cls, headers: Mapping[str, str]) -> Self | None:
        """Read `traceparent`, `tracestate` and `baggage`, names in any case. Returns None without a valid trace."""
        carrier = well_formed_headers({name.lower(): value for name, value in headers.items()})
        context = TraceContextTextMapPropagator().extract(carrier, Context())
        return cls.from_context(W3CBaggagePropagator().extract(carrier, context))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the result of `to_dict`. Raises `ValueError` for unknown or missing keys."""
        try:
            return cls(**data)
        except TypeError as exc:
            raise ValueError(f"not a trace context: {exc}; pass a mapping from TraceContext.to_dict()") from exc

    @fail_safe("trace_context", fallback=lambda _: {})
    def to_headers(self) -> dict[str, str]:
        """Return `traceparent`, and `tracestate` and `baggage` if they are not empty."""
        carrier: dict[str, str] = {}
        context = self.to_context(Context())
        TraceContextTextMapPropagator().inject(carrier, context)
        W3CBaggagePropagator().inject(carrier, context)
        return carrier

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, a queue or a database. `from_dict` reads it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "baggage": dict(self.baggage), "attributes": dict(self.attributes)}

    def to_context(self, context: Context | None = None) -> Context:
        """Return a copy of `context` (None: the current one) in which new spans continue this trace.

        Its baggage is replaced.
        """
        context = baggage.clear(context)
        for name, value in self.baggage.items():
            context = baggage.set_baggage(name, value, context)
        position = SpanContext(
            trace_id=int(self.trace_id, 16),
            span_id=int(self.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(self.sampled * TraceFlags.SAMPLED + self.random * RANDOM),
            trace_state=TraceState.from_header([self.trace_state]) if self.trace_state else None,
        )
        return trace.set_span_in_context(NonRecordingSpan(position), context)
