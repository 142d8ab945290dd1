"""Variables of the environment, for the tests of what reads them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def remove_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every variable that sets an option."""
    for name in list(os.environ):
        if name.startswith(("OBSERVE_", "OTEL_", "FASTAPI_ENV")):
            monkeypatch.delenv(name)


@contextmanager
def environment(*assignments: str) -> Iterator[None]:
    """Set variables: `environment("A=1", "B=2")`."""
    with pytest.MonkeyPatch.context() as patch:
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            patch.setenv(name, value)
        yield
