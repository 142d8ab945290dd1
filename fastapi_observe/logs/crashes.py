"""Crashes that a request line has reported, so that the server's own line about one refers to it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any, Final, NamedTuple

from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE, RequestFields

ID_KEYS: Final = ("trace_id", "span_id", "request_id")


class Crash(NamedTuple):
    """A request line with a stack trace: its trace, span and request id, the exception, and the request's fields."""

    ids: tuple[str, str, str]
    error_type: str
    message: str
    fields: RequestFields | None


CRASHES: Final[deque[Crash]] = deque(maxlen=256)
"""The last crashes about which the server has not written its own line yet."""


def refer_to_request_line(
    line: dict[str, Any], fields: dict[str, Any], exc: BaseException | None
) -> BaseException | None:
    """Remove the exception from a server's line if it is on a request line, and add the ids and fields of that line.

    Returns the exception that is left. One that was raised after the response was complete is on no request line.
    """
    ids = getattr(exc, EXCEPTION_IDS_ATTRIBUTE, None)
    text = line.get("exception", {})
    for crash in reversed(CRASHES.copy()):
        if crash.ids == ids if exc is not None else crash[1:3] == (text["type"], text["message"].rstrip()):
            with suppress(ValueError):  # another thread was faster
                CRASHES.remove(crash)
            line.pop("exception", None)
            line.update({key: value for key, value in zip(ID_KEYS, crash.ids, strict=True) if value})
            if crash.fields is not None:
                fields.update(crash.fields.fields)
            fields["error_type"] = crash.error_type
            return None
    return exc
