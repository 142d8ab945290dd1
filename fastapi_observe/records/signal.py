"""`Signal`: what a signal is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord

F = TypeVar("F", bound="Callable[..., Any]")
NO_OP_ATTRIBUTE = "__observe_nothing__"


def no_op(method: F) -> F:
    """Mark a method that does nothing."""
    setattr(method, NO_OP_ATTRIBUTE, True)
    return method


def is_implemented(method: object) -> bool:
    """Tell whether a method is worth a call."""
    return not getattr(method, NO_OP_ATTRIBUTE, False)


class Signal(Protocol):
    """Who reports exchanges and operations. A new signal is one class like this and one line in `Observability`."""

    def on_request_start(self, exchange: RequestRecord, /) -> None:
        """A request arrives."""

    def on_response_start(self, exchange: RequestRecord, /) -> None:
        """A WebSocket was accepted, or the response of an adopted span begins; the endpoint is known."""

    def on_request_end(self, exchange: RequestRecord, /) -> None:
        """A request has ended; everything about it is known."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """A piece of work begins."""

    def on_operation_end(self, operation: Operation, /) -> None:
        """A piece of work has ended."""


SignalHook = tuple[tuple[str, int, Signal], ...]
"""Signals with their names, each with a bit of its own."""
