"""Undocumented names of SQLAlchemy: they are found, and measurement works without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import QueuePool

from fastapi_observe.internal.sqlalchemy import (
    INSERTMANYVALUES_METHOD,
    base_engine,
    insertmanyvalues_method,
    is_new_connection,
    max_connections,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """Yield an engine with a pool of at most three connections."""
    engine = sa.create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=1)
    yield engine
    engine.dispose()


def test_the_names_exist(engine: sa.Engine) -> None:
    """The installed version has every name."""
    assert base_engine(engine.execution_options(isolation_level="AUTOCOMMIT")) is engine
    assert insertmanyvalues_method(engine.dialect) is not None
    assert isinstance(engine.pool, QueuePool)
    assert max_connections(engine.pool) == 3
    contexts = []
    sa.event.listen(engine, "after_cursor_execute", lambda *args: contexts.append(args[4]))
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert hasattr(contexts[0].root_connection, "_allow_autobegin")
    assert not is_new_connection(contexts[0])


def test_without_the_names(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the names, functions return what is described as their fallback."""
    assert isinstance(engine.pool, QueuePool)
    monkeypatch.delattr(engine.pool, "_max_overflow")
    assert max_connections(engine.pool) is None
    assert not is_new_connection(object())
    assert base_engine(engine) is engine


def test_an_engine_is_measured_without_the_names(
    observed: Callable[..., Seen], engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of a version without these names can be instrumented, measured and restored."""
    monkeypatch.delattr(DefaultDialect, INSERTMANYVALUES_METHOD)
    seen = observed(FastAPI(), engines=[engine])
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    assert seen.total("db_queries_total") == 1
    assert seen.sample("db_connections_idle", pool="sqlite") == 1
    seen.observe.close()
    assert "do_execute" not in vars(engine.dialect)
    assert seen.observe.internal_errors.counts == {}
