"""What is done with what others wrote: a traceback in a message, the queries of an access line, an exception's ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.logs.line import MAX_STACKTRACE, MAX_VALUE, truncate
from fastapi_observe.records.exceptions import exception_chain, tail
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE

if TYPE_CHECKING:
    import logging

    from fastapi_observe.redaction.redactor import Redactor

TRACEBACK: Final = "Traceback (most recent call last):"

ACCESS_LOGGERS: Final = frozenset({"uvicorn.access", "gunicorn.access", "hypercorn.access"})

WEBSOCKET_ACCESS: Final = '%s - "WebSocket %s"'
"""How uvicorn's access lines of WebSockets begin: they come from `uvicorn.error`."""

QUERY: Final = re.compile(r"\?(\S*?)(?=\"?(?:\s|$))")
"""A query in a line of text: up to white space, without the quotation mark before it."""

PATH: Final = re.compile(r"(?<=[ \"])/[^\s?\"]*+")
"""The path that was asked for."""


def is_access_log(record: logging.LogRecord) -> bool:
    """Tell whether a server writes `record` for each request or WebSocket."""
    if record.name in ACCESS_LOGGERS:
        return True
    return record.name == "uvicorn.error" and isinstance(record.msg, str) and record.msg.startswith(WEBSOCKET_ACCESS)


def redact_access(text: str, redactor: Redactor) -> str:
    """Return an access line with the network of the client, and with queries and paths as spans show them."""
    address, blank, rest = text.partition(" ")
    rest = QUERY.sub(lambda found: f"?{redactor.query(found[1])}", rest)
    return (
        str(redactor.address(address))
        + blank
        + PATH.sub(lambda found: redactor.raw_path(found[0], redactor.unmatched_path), rest)
    )


def parse_traceback_message(text: str, redactor: Redactor) -> dict[str, str] | None:
    """Describe a message that is a traceback as the contract's `exception` object; None if it is none.

    uvicorn logs a failed startup like this. The end of the stack trace is kept: it tells what happened.
    """
    if not text.startswith(TRACEBACK):
        return None
    rows = text[text.rindex(TRACEBACK) :].rstrip().split("\n")
    first = next((at for at, row in enumerate(rows) if at and not row.startswith(" ")), len(rows) - 1)
    reason = "\n".join(rows[first:])
    kind, _, message = reason.partition(": ")
    stacktrace = redactor.text(tail(text))
    return {
        "type": truncate(redactor.text(kind.rpartition(".")[2]), 256),
        "message": truncate(redactor.text(message), MAX_VALUE),
        "stacktrace": stacktrace if len(stacktrace) <= MAX_STACKTRACE else "…" + stacktrace[1 - MAX_STACKTRACE :],
    }


def ids_from_exception(exc: BaseException) -> tuple[str, str, str]:
    """Find the ids that the door gave to `exc` or to one it stands for; empty if there are none."""
    for each in exception_chain(exc):
        found = getattr(each, EXCEPTION_IDS_ATTRIBUTE, None)
        if found is not None:
            trace_id, span_id, request_id = found
            return trace_id, span_id, request_id
    return "", "", ""
