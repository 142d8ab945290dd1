"""The one place that decides what happens where a program or package that a test needs is missing."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest


def needs(program: str) -> str:
    """Return the path of a program; where it is missing, skip the test, or fail it under `OBSERVE_REQUIRE_ALL=1`."""
    return shutil.which(program) or _missing(f"{program} is not on PATH")


def needs_package(name: str) -> str:
    """Return the name of an importable package; where it is missing, skip or fail as `needs` does."""
    return name if find_spec(name) is not None else _missing(f"the package {name} is not installed")


def _missing(reason: str) -> str:
    if os.environ.get("OBSERVE_REQUIRE_ALL") == "1":
        pytest.fail(f"OBSERVE_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)
