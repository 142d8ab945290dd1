"""Former public names raise an error that states the new name."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

import fastapi_observe
from fastapi_observe import testing


def test_a_former_function_names_the_new_one() -> None:
    """Importing `watch`, or calling `current`, says what it is called now."""
    with pytest.raises(ImportError, match=r"renamed to fastapi_observe\.testing\.capture"):
        exec("from fastapi_observe.testing import watch", {})  # noqa: S102 - as a user would write it
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = testing.other
    from fastapi_observe import current  # noqa: PLC0415 - as a user would write it

    with pytest.raises(TypeError, match=r"renamed to fastapi_observe\.get_observability\(\)"):
        current()  # type: ignore[operator]  # a module


def test_a_former_method_names_the_new_one(observed: Any) -> None:
    """Reading a renamed method is an `AttributeError` with the new name, so `hasattr` is False."""
    observe: Any = observed(FastAPI()).observe
    for owner, name, new_name in (
        (fastapi_observe.operation("step"), "detail", "add_details"),
        (observe.db.query("SELECT", table="orders"), "rows", "set_row_count"),
        (observe.external.call("billing", "get"), "status", "set_status_code"),
        (observe.tracing, "event", "add_event"),
        (observe.tracing, "keep_all", "sample_all"),
    ):
        with pytest.raises(AttributeError, match=rf"\.{name} was renamed to {new_name}"):
            getattr(owner, name)
        assert not hasattr(owner, name)
