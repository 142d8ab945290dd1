"""`OTEL_*` variables for whose values OpenTelemetry raises: they are left out where it reads them."""

from __future__ import annotations

import contextlib
import os
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_VARIABLES: Final = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
"""Limits of spans."""

LIMIT: Final = re.compile(r"\s*(?:\+?[0-9]+)?\s*")
"""A valid limit. Without a number there is none."""

ENTRY_POINTS: Final = {
    "OTEL_PROPAGATORS": "opentelemetry_propagator",
    "OTEL_PYTHON_METER_PROVIDER": "opentelemetry_meter_provider",
    "OTEL_PYTHON_TRACER_PROVIDER": "opentelemetry_tracer_provider",
}
"""Variables that name installed entry points, each with the group of these."""


class InvalidVariable(NamedTuple):
    """A variable with an invalid value. `valid` is what remains of a list of names, None if nothing does."""

    name: str
    invalid: str
    expected: str
    valid: str | None = None


def invalid_variables() -> Iterator[InvalidVariable]:
    """Yield the variables for which OpenTelemetry raises at its import, or for a new provider or tracer."""
    for name, group in ENTRY_POINTS.items():
        if text := os.environ.get(name):
            installed = entry_points(group=group).names
            is_list = name == "OTEL_PROPAGATORS"
            names = [part.strip() for part in text.split(",")] if is_list else [text]
            valid = [part for part in names if part in installed or (is_list and part.lower() == "none")]
            if valid != names:
                unknown = ",".join(part for part in names if part not in valid)
                yield InvalidVariable(name, unknown, ", ".join(sorted(installed)), ",".join(valid) or None)
    for name in LIMIT_VARIABLES:
        if not LIMIT.fullmatch(text := os.environ.get(name, "")):
            yield InvalidVariable(name, text, "a whole number from 0, or nothing for no limit")


@contextlib.contextmanager
def without_invalid_variables() -> Iterator[None]:
    """Leave the invalid variables out of the environment in a block that imports or uses OpenTelemetry."""
    replaced: dict[str, str] = {}
    for variable in [*invalid_variables()]:
        replaced[variable.name] = os.environ[variable.name]
        if variable.valid is None:
            del os.environ[variable.name]
        else:
            os.environ[variable.name] = variable.valid
    try:
        yield
    finally:
        os.environ.update(replaced)


with without_invalid_variables():
    import opentelemetry.propagate
    import opentelemetry.sdk.trace  # noqa: F401 - reads its variables at the import
