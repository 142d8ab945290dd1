"""`Propagation`: which hosts are told the trace they are part of, and the headers that tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, propagate, trace

from fastapi_observe.internal.networks import is_private_host, normalize_host
from fastapi_observe.records.request import OTEL_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from opentelemetry.context import Context

MAX_HOSTS: Final = 1024
"""Hosts whose answer is remembered; of further ones it is worked out each time."""

MAX_HOST_LENGTH: Final = 253
"""Characters of a DNS name (RFC 1035); what is longer is nobody of ours."""

_W3C: Final = frozenset({"traceparent", "tracestate", "baggage"})


class PropagationPolicy:
    """Decides by the name of a host alone, never by looking it up.

    Private hosts are told: addresses of this machine and of private, link-local and shared (RFC 6598) networks, names
    of one label (`payments`), and those under `.local`, `.internal`, `.svc`, `.localhost`, `.lan` and `.test`. `hosts`
    are told too: exact, `*.example.com` (what is below it), `*` (all). Of baggage only the `keys` go along; `*` stands
    for all.
    """

    def __init__(self, hosts: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        named = [normalize_host(host) for host in hosts]
        self._all = "*" in named
        self._exact = frozenset(named)
        self._below = tuple(host[1:] for host in named if host.startswith("*."))
        self._keys = frozenset(keys)
        self._known: dict[str, bool] = {}
        self._propagator: Any = None
        self._fields = _W3C
        self._plain = False

    def allows(self, host: str) -> bool:
        """Tell whether `host` may know the trace."""
        known = self._known.get(host)
        if known is None:
            known = self._is_allowed(normalize_host(host))
            if len(self._known) < MAX_HOSTS and len(host) <= MAX_HOST_LENGTH:
                self._known[host] = known
        return known

    def _is_allowed(self, host: str) -> bool:
        if not host or len(host) > MAX_HOST_LENGTH:
            return False
        return self._all or host in self._exact or host.endswith(self._below) or is_private_host(host)

    def inject(self, host: str | None, headers: MutableMapping[str, str], *, allowed: bool | None = None) -> None:
        """Write the headers of the current trace for `host` (None: for one that is trusted) into `headers`.

        A host that is not allowed gets none, and loses those that came along: redirects copy headers. `allowed`
        decides without looking at the host.
        """
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            self._take(propagator)
        if allowed is None:
            allowed = host is None or self.allows(host)
        if not allowed:
            for name in self._fields:
                headers.pop(name, None)
            return
        context = OTEL_CONTEXT.get()
        if self._plain:
            at = trace.get_current_span(context).get_span_context()
            trace_id, span_id, _, flags, state, valid = at  # its properties cost more than all the rest
            if valid and not state and not baggage.get_all(context):
                headers["traceparent"] = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
                return
        carrier: dict[str, str] = {}
        propagator.inject(carrier, self._visible(context))
        for name, value in carrier.items():
            headers[name] = value

    def _take(self, propagator: Any) -> None:
        """Learn what the global propagator writes: the user may set another one at any time."""
        fields = propagator.fields
        self._fields = _W3C | fields
        self._plain = fields <= _W3C and "traceparent" in fields
        self._propagator = propagator

    def _visible(self, context: Context) -> Context:
        """Leave only the baggage in `context` that goes along."""
        carried = baggage.get_all(context)
        if not carried or "*" in self._keys:
            return context
        for key in carried:
            if key not in self._keys:
                context = baggage.remove_baggage(key, context)
        return context
