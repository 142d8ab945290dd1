"""Tests use public names: the private attributes of other objects that a test module reads are few."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
MAX_PRIVATE: Final = 6
"""Private attributes of other objects that a test module may read. Most of them are those of other libraries."""

PUBLIC: Final = frozenset({"_replace", "_fields", "_asdict", "_exit"})
"""Documented names of named tuples and of `os`."""


def count_private(path: Path) -> int:
    """Count the private attributes that a module reads or sets on anything but `self` and `cls`."""
    return sum(
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in PUBLIC
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )


def test_private_attributes_are_rare() -> None:
    """A test that reads how something is done breaks when that changes, though the behaviour is the same."""
    counts = {path.relative_to(TESTS).as_posix(): count_private(path) for path in TESTS.rglob("*.py")}
    assert {name: count for name, count in counts.items() if count > MAX_PRIVATE} == {}
