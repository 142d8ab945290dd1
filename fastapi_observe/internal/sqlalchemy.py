"""Names of SQLAlchemy that are not documented, with a fallback for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Dialect, Engine
    from sqlalchemy.pool import QueuePool

INSERTMANYVALUES_METHOD: Final = "_deliver_insertmanyvalues_batches"
"""Method of the dialect that sends one INSERT of many rows as several statements."""


def base_engine(engine: Engine) -> Engine:
    """Return the engine from which `execution_options()` made this one; this one if that cannot be found.

    Both have the same pool and dialect. Without the name, the name of the pool's label may differ between them.
    """
    while (base := getattr(engine, "_proxied", None)) is not None:
        engine = base
    return engine


def insertmanyvalues_method(dialect: Dialect) -> Callable[..., Iterator[Any]] | None:
    """Return the dialect's method; None if there is none. Each statement is then measured for itself."""
    return getattr(dialect, INSERTMANYVALUES_METHOD, None)


def is_new_connection(context: Any) -> bool:
    """Return whether SQLAlchemy executes a statement to prepare a new connection; False if that is unknown.

    Such a statement is then measured like a query of the user.
    """
    try:
        return not context.root_connection._allow_autobegin  # noqa: SLF001 - see above
    except AttributeError:
        return False


def max_connections(pool: QueuePool) -> int | None:
    """Return the maximum number of connections of a pool; None if there is no limit, or it is unknown."""
    size, overflow = pool.size(), getattr(pool, "_max_overflow", -1)
    return size + overflow if size and overflow >= 0 else None
