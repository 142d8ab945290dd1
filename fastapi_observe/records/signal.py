"""`Signal`: the interface of traces, metrics and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord

F = TypeVar("F", bound="Callable[..., Any]")
NO_OP_ATTRIBUTE = "__observe_no_op__"

SIGNAL_BITS: Final = {"traces": 1, "metrics": 2, "logs": 4, "console": 8}
"""Bit of each signal in a set of signals."""


def no_op(method: F) -> F:
    """Mark a method of a signal as doing nothing, so that it is not called."""
    setattr(method, NO_OP_ATTRIBUTE, True)
    return method


def is_implemented(method: object) -> bool:
    """Return whether a method of a signal is not marked by `no_op`."""
    return not getattr(method, NO_OP_ATTRIBUTE, False)


class Signal(Protocol):
    """Reports requests, jobs and operations. A new one also needs a bit above and a line in `Observability`."""

    def on_request_start(self, record: RequestRecord, /) -> None:
        """Handle the start of a request."""

    def on_response_start(self, record: RequestRecord, /) -> None:
        """Handle the acceptance of a WebSocket, or the start of the response of an adopted span.

        The endpoint is known.
        """

    def on_request_end(self, record: RequestRecord, /) -> None:
        """Handle the end of a request. The record is complete."""

    def on_job_start(self, record: JobRecord, /) -> None:
        """Handle the start of a job. Sets what `on_request_start` sets."""

    def on_job_end(self, record: JobRecord, /) -> None:
        """Handle the end of a job. The record is complete."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """Handle the start of an operation."""

    def on_operation_end(self, operation: Operation, /) -> None:
        """Handle the end of an operation."""


# Not a NamedTuple, whose fields cost every request ten times as much to read as slots.
@dataclass(slots=True)
class SignalHook:
    """A signal of one install. `bit` identifies it in `RequestRecord.skipped_signals`."""

    name: str
    bit: int
    signal: Signal
