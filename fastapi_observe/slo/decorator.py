"""The decorator `@slo`, which declares objectives on a path operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.requests.routing import list_endpoints
from fastapi_observe.settings.objectives import Availability, Latency, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTIVES_ATTRIBUTE: Final = "__observe_slos__"
"""Attribute of a path operation's function that holds the objectives of its `@slo` decorators."""

F = TypeVar("F", bound="Callable[..., Any]")


def slo(*objectives: Objective) -> Callable[[F], F]:
    """Declare objectives of one path operation: `@slo(Availability("checkout", 99.95))`, above or below `@app.post`.

    The function itself is returned. The same objective on several path operations counts them together. Raises
    `TypeError` for anything that is not an objective and `ValueError` for an objective that names routes.
    """
    if not objectives:
        raise TypeError('@slo needs an objective, such as @slo(Availability("checkout", 99.95))')
    for objective in objectives:
        if not isinstance(objective, Availability | Latency):
            raise TypeError(f"@slo needs Availability(...) or Latency(...), got {objective!r:.80}")
        if not isinstance(objective.name, str):
            raise TypeError(f"the name of an objective must be a string, got {objective.name!r:.80}")
        if objective.routes:
            raise ValueError(
                f"@slo counts the path operation that it decorates; leave out routes={list(objective.routes)!r:.80}, "
                "or pass the objective to install(app, slos=[...])"
            )

    def declare(function: F) -> F:
        setattr(function, OBJECTIVES_ATTRIBUTE, (*declared_objectives(function), *objectives))
        return function

    return declare


def declared_objectives(function: Any) -> tuple[Objective, ...]:
    """Return the objectives that `@slo` declared on a path operation's function."""
    objectives = getattr(function, OBJECTIVES_ATTRIBUTE, ())
    return objectives if isinstance(objectives, tuple) else ()  # a mock has every attribute


def has_declared_objectives(app: Any) -> bool:
    """Return whether any path operation of an app has objectives of `@slo`."""
    return any(declared_objectives(endpoint.function) for endpoint in list_endpoints(app))
