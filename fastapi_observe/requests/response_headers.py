"""`ResponseHeaders`: the request id, and the headers that are added to every response."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.records.ids import ID_SOURCE
from fastapi_observe.requests.trust import TrustPolicy

if TYPE_CHECKING:
    from fastapi_observe.records.request import RequestRecord

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{7,63}")
"""Format of a request id that is accepted from a caller."""


class ResponseHeaders:
    """Adds the request id to every response, and `traceresponse` to responses of sampled traces."""

    __slots__ = ("_header", "_sends_trace", "_trust")

    def __init__(self, settings: Any) -> None:
        self._header = settings.request_id_header.lower().encode()
        self._trust = TrustPolicy(settings.trust_incoming)
        self._sends_trace = settings.response_trace_header

    def prepare(self, record: RequestRecord) -> None:
        """Set the request id: the caller's, if the caller is trusted and the id is well formed, else the trace id."""
        incoming = record.headers.get(self._header)
        if incoming is not None and REQUEST_ID.fullmatch(incoming) and self._trust.is_trusted(record):
            record.request_id = incoming.decode("ascii")
        else:
            record.request_id = record.trace_id or (next(ID_SOURCE.pairs, None) or ID_SOURCE.refill())[0]
        record.extra_response_headers[self._header] = record.request_id.encode()
        if record.sampled and self._sends_trace:
            record.extra_response_headers[b"traceresponse"] = f"00-{record.trace_id}-{record.span_id}-01".encode()
