"""Former public names raise an error that states the new name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fastapi import FastAPI

import fastapi_observe
from fastapi_observe import Availability, testing
from fastapi_observe.metrics.error_budgets import ErrorBudget


def test_a_former_function_names_the_new_one() -> None:
    """Importing `watch` or `Watch`, or calling `current`, raises an error with the new name."""
    for old, new in (("watch", "capture"), ("Watch", "CapturedTelemetry")):
        with pytest.raises(ImportError, match=rf"testing\.{old} was renamed to fastapi_observe\.testing\.{new}$"):
            exec(f"from fastapi_observe.testing import {old}", {})  # noqa: S102 - as a user would write it
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


def test_a_former_argument_names_the_new_one() -> None:
    """`Availability(bad=...)` and the attribute `burn` of a budget raise errors with the new names."""
    old: Any = Availability
    with pytest.raises(
        TypeError, match=r"^Availability\(bad=\.\.\.\) was renamed to Availability\(bad_statuses=\.\.\.\)$"
    ):
        old("api", 99.9, bad=["5xx"])
    assert [*inspect.signature(Availability).parameters][:4] == ["name", "objective", "routes", "bad_statuses"]
    budget = ErrorBudget("api", 0, 0, 1.0, {})
    with pytest.raises(AttributeError, match=r"ErrorBudget\.burn was renamed to burn_rates"):
        _ = budget.burn
