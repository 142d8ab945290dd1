"""What `@slo(...)` leaves on a path operation: what it promises, written beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.settings.objectives import Availability, Latency, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

MARK: Final = "__observe_slos__"
"""Attribute of a path operation's function: the objectives that `@slo` gave it."""

F = TypeVar("F", bound="Callable[..., Any]")


def slo(*objectives: Objective) -> Callable[[F], F]:
    """Return what `@slo(...)` does to a function; see `annotation.py`."""
    for objective in objectives:
        if not isinstance(objective, Availability | Latency):
            raise TypeError(f"@slo needs Availability(...) or Latency(...), got {objective!r:.80}")
        if not isinstance(objective.name, str):
            raise TypeError(f"the name of an objective is text, got {objective.name!r:.80}")
        if objective.routes:
            raise ValueError(
                f"@slo counts the path operation that it stands on: leave out routes={list(objective.routes)!r:.80}, "
                "or give the objective to install(app, slos=[...])"
            )
    if not objectives:
        raise TypeError('@slo needs an objective, such as @slo(Availability("checkout", 99.95))')

    def mark(function: F) -> F:
        setattr(function, MARK, (*getattr(function, MARK, ()), *objectives))
        return function

    return mark
