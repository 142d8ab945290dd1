"""`nothing`: marks what a signal is told for form's sake, so that it need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

F = TypeVar("F", bound="Callable[..., Any]")
MARK = "__observe_nothing__"


def nothing(method: F) -> F:
    """Mark a method that does nothing."""
    setattr(method, MARK, True)
    return method


def does_something(method: object) -> bool:
    """Tell whether a method is worth a call."""
    return not getattr(method, MARK, False)
