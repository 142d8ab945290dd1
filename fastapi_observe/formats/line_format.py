"""`LineFormat`: the keys of a JSON log line, for the code that writes lines and for queries that read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.time_breakdown import FIELD_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Line = dict[str, Any]
"""A line as JSON types, with the keys of `docs/reference/logs.md`."""

FIELD_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "method": str,
    "url": str,
    "endpoint": str,
    "status_code": int,
    "outcome": str,
    "sampled": (str, bool),
    "duration_ms": (int, float),
    "ttfb_ms": (int, float),
    "self_ms": (int, float),
    **{f"{prefix}_ms": (int, float) for prefix in FIELD_PREFIXES.values()},
    **{f"{prefix}_count": int for prefix in FIELD_PREFIXES.values()},
    "request_size": int,
    "response_size": int,
    "user_agent": str,
    "remote_addr": str,
    "error_type": str,
    "validation_errors": list,
    "close_code": (int, str),
    "messages_received": int,
    "messages_sent": int,
    "job": str,
}
"""Fields of request lines, with the types of their values. A field of another type is one that a user chose."""


MAX_NUMBER: Final = 2**62
"""A bound within the 64-bit integers of the platforms, that a float holds exactly."""


class LineFormat(NamedTuple):
    """The form of lines for one platform.

    `keys` are the paths of keys of this package's lines in those of the platform; fields that it does not list are
    below `rest`. `convert` changes a line; None leaves it as it is. `trace_id_pattern` finds the trace id in an encoded
    line. `trace_id_is_suffix` says that the platform's value only ends with the id.
    """

    name: str
    keys: Mapping[str, str]
    rest: str
    convert: Callable[[Line], Line] | None
    trace_id_pattern: str
    trace_id_is_suffix: bool = False

    def key(self, name: str) -> str:
        """Return the path of a key of this package's lines, such as `trace_id` or `fields.endpoint`."""
        name = name.removeprefix("fields.")
        return self.keys.get(name) or f"{self.rest}.{name}"

    def logql_label(self, name: str) -> str:
        """Return the label that the `json` stage of LogQL gives to a key of this package's lines."""
        return re.sub(r"[^a-zA-Z0-9_]", "_", self.key(name))

    def logql_trace_filter(self, trace_id: str) -> str:
        """Return the LogQL filter, after a `json` stage, for the lines of one trace."""
        label = self.logql_label("trace_id")
        return f'{label}=~".*{trace_id}"' if self.trace_id_is_suffix else f'{label}="{trace_id}"'


def take_field(fields: Line, name: str) -> Any:
    """Remove and return a field of a request line; None if it is missing or not of the type that this package writes.

    A boolean is not a number here, and neither is one that platforms cannot store.
    """
    value = fields.get(name)
    types = FIELD_TYPES[name]
    if not isinstance(value, types) or (isinstance(value, bool) and name != "sampled"):
        return None
    if isinstance(value, int | float) and not -MAX_NUMBER < value < MAX_NUMBER:
        return None
    return fields.pop(name)


def duration_nanoseconds(milliseconds: float) -> int:
    """Return a duration in nanoseconds, at most what a platform can store."""
    return round(max(-MAX_NUMBER, min(milliseconds * 1e6, MAX_NUMBER)))
