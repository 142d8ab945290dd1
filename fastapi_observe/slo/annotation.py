"""`@slo(...)`, which imports what it does when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.settings.objectives import Objective

F = TypeVar("F", bound="Callable[..., Any]")


def slo(*objectives: Objective) -> Callable[[F], F]:
    """Promise something of one path operation: `@slo(Availability("checkout", 99.95))`, above or below `@app.post`.

    The function stays as it is. The same objective on several path operations counts them together. Raises `TypeError`
    for what is no objective, `ValueError` for one that names routes itself.
    """
    from fastapi_observe.slo import decorator  # noqa: PLC0415 - once imported, apps look for marks at their start

    return decorator.slo(*objectives)
