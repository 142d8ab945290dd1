"""`PropagationPolicy`: which hosts receive the trace context, and the headers that carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, propagate

from fastapi_observe.internal.networks import is_private_host, normalize_host
from fastapi_observe.internal.opentelemetry import BAGGAGE_KEY, SPAN_KEY, current_context

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from opentelemetry.context import Context

MAX_HOSTS: Final = 1024
"""Hosts whose decision is cached."""

MAX_HOST_LENGTH: Final = 253
"""Characters of a DNS name (RFC 1035). Longer hosts are never allowed."""

_W3C: Final = frozenset({"traceparent", "tracestate", "baggage"})


class PropagationPolicy:
    """Decides by the name of a host, without a DNS lookup.

    Allowed are private hosts: loopback, private, link-local and shared (RFC 6598) addresses, names of one label
    (`payments`), and names under `.local`, `.internal`, `.svc`, `.localhost`, `.lan` and `.test`; and `hosts`: an exact
    name, `*.example.com` for all subdomains, or `*` for all. Of the baggage only `keys` are sent, or all with `*`.
    """

    def __init__(self, hosts: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        names = [normalize_host(host) for host in hosts]
        self._allow_all = "*" in names
        self._exact = frozenset(names)
        self._suffixes = tuple(host[1:] for host in names if host.startswith("*."))
        self._baggage_keys = frozenset(keys)
        self._decisions: dict[str, bool] = {}
        self._propagator: Any = None
        self._fields = _W3C
        self._is_w3c = False  # the propagator writes W3C headers only: `traceparent` can be formatted directly

    def allows(self, host: str) -> bool:
        """Return whether `host` may receive the trace context."""
        allowed = self._decisions.get(host)
        if allowed is None:
            allowed = self._is_allowed(normalize_host(host))
            if len(self._decisions) < MAX_HOSTS and len(host) <= MAX_HOST_LENGTH:
                self._decisions[host] = allowed
        return allowed

    def _is_allowed(self, host: str) -> bool:
        if not host or len(host) > MAX_HOST_LENGTH:
            return False
        return self._allow_all or host in self._exact or host.endswith(self._suffixes) or is_private_host(host)

    def inject(self, host: str | None, headers: MutableMapping[str, str], *, allowed: bool | None = None) -> None:
        """Add the current trace context to `headers` if `host` is allowed (None: trusted), else remove it.

        Removal matters for redirects, which copy headers to the next host. `allowed` overrides the decision.
        """
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            self._use(propagator)
        if allowed is None:
            allowed = host is None or self.allows(host)
        if not allowed:
            for name in self._fields:
                headers.pop(name, None)
            return
        context = current_context()
        span = context.get(SPAN_KEY)
        if span is not None and self._is_w3c and BAGGAGE_KEY not in context:
            # A tuple: unpacking is cheaper than properties.
            trace_id, span_id, _, flags, state, valid = span.get_span_context()  # type: ignore[attr-defined]
            if valid and not state:
                # Not an f-string, which formats each number in a call of its own, at twice the cost.
                headers["traceparent"] = "00-%032x-%016x-%02x" % (trace_id, span_id, flags)  # noqa: UP031
                return
        carrier: dict[str, str] = {}
        propagator.inject(carrier, self.with_allowed_baggage(context))
        for name, value in carrier.items():
            headers[name] = value

    def _use(self, propagator: Any) -> None:
        """Read which headers the global propagator writes. The user may replace it at any time."""
        fields = propagator.fields
        self._fields = _W3C | fields
        self._is_w3c = fields <= _W3C and "traceparent" in fields
        self._propagator = propagator

    def with_allowed_baggage(self, context: Context) -> Context:
        """Return a context with the baggage that may be sent."""
        entries = baggage.get_all(context)
        if not entries or "*" in self._baggage_keys:
            return context
        for key in entries:
            if key not in self._baggage_keys:
                context = baggage.remove_baggage(key, context)
        return context
