"""`Signal`: what a signal is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import Exchange

F = TypeVar("F", bound="Callable[..., Any]")
MARK = "__observe_nothing__"


def nothing(method: F) -> F:
    """Mark a method that does nothing."""
    setattr(method, MARK, True)
    return method


def does_something(method: object) -> bool:
    """Tell whether a method is worth a call."""
    return not getattr(method, MARK, False)


class Signal(Protocol):
    """Who reports exchanges and operations. A new signal is one class like this and one line in `Observability`."""

    def open_exchange(self, exchange: Exchange, /) -> None:
        """A request arrives."""

    def start_exchange(self, exchange: Exchange, /) -> None:
        """A WebSocket was accepted, or the response of an adopted span begins; the endpoint is known."""

    def close_exchange(self, exchange: Exchange, /) -> None:
        """A request has ended; everything about it is known."""

    def open_operation(self, operation: Operation, /) -> None:
        """A piece of work begins."""

    def close_operation(self, operation: Operation, /) -> None:
        """A piece of work has ended."""


Told = tuple[tuple[str, int, Signal], ...]
"""Signals with their names, each with a bit of its own."""
