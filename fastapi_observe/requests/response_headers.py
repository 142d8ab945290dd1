"""`Stamps`: the request id, and the headers that every response carries."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.requests.trust import TrustPolicy

if TYPE_CHECKING:
    from fastapi_observe.records.request import RequestRecord

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{7,63}")
"""What a request id from outside must look like to be taken over."""


class ResponseHeaders:
    """Puts our headers on the responses: the request id, and `traceresponse` where the trace is kept."""

    __slots__ = ("_header", "_sends_trace", "_trust")

    def __init__(self, settings: Any) -> None:
        self._header = settings.request_id_header.lower().encode()
        self._trust = TrustPolicy(settings.trust_incoming)
        self._sends_trace = settings.response_trace_header

    def prepare(self, exchange: RequestRecord) -> None:
        """Choose the request id: the caller's, if it is believed and well formed, else the trace id."""
        given = exchange.headers.get(self._header)
        if given is not None and REQUEST_ID.fullmatch(given) and self._trust.is_trusted(exchange):
            exchange.request_id = given.decode("ascii")
        else:
            exchange.request_id = exchange.trace_id or uuid.uuid4().hex
        exchange.extra_response_headers[self._header] = exchange.request_id.encode()
        if exchange.sampled and self._sends_trace:
            exchange.extra_response_headers[b"traceresponse"] = f"00-{exchange.trace_id}-{exchange.span_id}-01".encode()
