"""Parts of a log record: a mapping or a traceback as its message, the queries of an access line, ids of errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.logs.line import MAX_STACKTRACE, MAX_VALUE, to_text, truncate
from fastapi_observe.records.exceptions import exception_chain, tail
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE
from fastapi_observe.redaction.values import MAX_MEMBERS

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from fastapi_observe.redaction.redactor import Redactor

TRACEBACK: Final = "Traceback (most recent call last):"

ACCESS_LOGGERS: Final = frozenset({"uvicorn.access", "gunicorn.access", "hypercorn.access", "granian.access"})

WEBSOCKET_ACCESS: Final = '%s - "WebSocket %s"'
"""Start of uvicorn's access lines of WebSockets, which come from `uvicorn.error`."""

QUERY: Final = re.compile(r"\?(\S*?)(?=\"?(?:\s|$))")
"""A query in a line of text: up to white space, without the quotation mark before it."""

PATH: Final = re.compile(r"(?<=[ \"])/[^\s?\"]*+")
"""A requested path."""

CONVERSION: Final = re.compile(r"%(?:%|\((?P<name>[^()]*)\)[#0 +-]*[0-9*]*(?:\.[0-9*]*)?[hlL]?[A-Za-z])")
"""A conversion of a named argument, or `%%`."""

STRUCTLOG_FIELDS: Final = frozenset({"_from_structlog", "_logger", "_name", "_record"})
"""What structlog adds to an event for its own formatter."""


def split_mapping(message: Mapping[Any, Any]) -> tuple[str, dict[str, Any], BaseException | None]:
    """Return the message, the fields and the exception of a mapping that was logged as a message.

    The message is `event`, as in structlog, or `message`; everything else is a field.
    """
    items = dict.items(message) if isinstance(message, dict) else message.items()  # a subclass may override it
    fields = {to_text(key, 256): value for key, value in items if key not in STRUCTLOG_FIELDS}
    exc = to_exception(fields["exc_info"]) if "exc_info" in fields else None
    if exc is not None or not fields.get("exc_info", True):
        del fields["exc_info"]
    text = fields.pop("event" if "event" in fields else "message", "")
    return to_text(text, sys.maxsize), fields, exc


def to_exception(exc_info: object) -> BaseException | None:
    """Return the exception that `exc_info` means: one, the tuple of `sys.exc_info`, or true for the current one."""
    if exc_info is True or exc_info == 1:
        exc_info = sys.exc_info()
    found = exc_info[1] if isinstance(exc_info, tuple) and len(exc_info) > 1 else exc_info
    return found if isinstance(found, BaseException) else None


class _RedactedArguments(Mapping[str, Any]):
    """Named arguments of a record. A value is redacted when it is read, because a mapping may compute it."""

    def __init__(self, given: Mapping[str, Any], redactor: Redactor) -> None:
        self._given = given
        self._redactor = redactor

    def __getitem__(self, name: str) -> Any:
        return self._redactor.value_in_text(str(name), self._given[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __str__(self) -> str:
        """Return the text of the mapping for `%s`, which is redacted as a part of the message."""
        return str(self._given)

    def __repr__(self) -> str:
        """Return the text of the mapping for `%r`."""
        return repr(self._given)

    def convert(self, match: re.Match[str]) -> str:
        """Return a conversion such as `%(pin)04d`, or `%(pin)s` if the value is redacted: it is no number then."""
        name = match["name"]
        if name is None:
            return match[0]
        value = self._given[name]
        return match[0] if self._redactor.value_in_text(name, value) is value else f"%({name})s"


def format_message(record: logging.LogRecord, redactor: Redactor) -> str:
    """Return the message of a record, with the values of `%(name)s` redacted by names that it does not contain."""
    given = record.args
    if isinstance(given, Mapping) and (
        type(given) is not dict
        or len(given) > MAX_MEMBERS
        or any(redactor.value_in_text(str(name), value) is not value for name, value in given.items())
    ):
        record = copy(record)
        # `logging` reads it by name only, as `%` does.
        record.args = arguments = _RedactedArguments(given, redactor)
        if isinstance(record.msg, str):
            record.msg = CONVERSION.sub(arguments.convert, record.msg)
    return record.getMessage()


def is_access_log(record: logging.LogRecord) -> bool:
    """Return whether `record` is one that a server writes for each request or WebSocket."""
    if record.name in ACCESS_LOGGERS:
        return True
    return record.name == "uvicorn.error" and isinstance(record.msg, str) and record.msg.startswith(WEBSOCKET_ACCESS)


def access_message(record: logging.LogRecord, redactor: Redactor) -> str:
    """Return the message of an access line with the client's network, and with queries and paths as in spans."""
    args = record.args
    if record.name != "granian.access" or not isinstance(args, dict):
        return redact_access(record.getMessage().rstrip("\n"), redactor)
    redacted = {
        **args,
        "addr": redactor.address(args.get("addr")),
        "path": redactor.raw_path(str(args.get("path")), redactor.unmatched_path),
        "query_string": redactor.query(str(args.get("query_string") or "")),
    }
    return str(record.msg) % redacted


def redact_access(text: str, redactor: Redactor) -> str:
    """Redact an access line that starts with the address of the client."""
    address, blank, rest = text.partition(" ")
    rest = QUERY.sub(lambda match: f"?{redactor.query(match[1])}", rest)
    return (
        str(redactor.address(address))
        + blank
        + PATH.sub(lambda match: redactor.raw_path(match[0], redactor.unmatched_path), rest)
    )


def parse_traceback_message(text: str, redactor: Redactor) -> dict[str, str] | None:
    """Return the `exception` object of a message that is a traceback, or None for any other message.

    uvicorn logs a failed startup like this. Of a long traceback the end is kept: it has the cause.
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
    """Return the trace, span and request id that our middleware gave to `exc` or one in its chain, or empty strings."""
    for each in exception_chain(exc):
        ids = getattr(each, EXCEPTION_IDS_ATTRIBUTE, None)
        if ids is not None:
            trace_id, span_id, request_id = ids
            return trace_id, span_id, request_id
    return "", "", ""
