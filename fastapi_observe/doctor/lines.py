"""Checks of why records or requests have no log line, and requests no signal at all."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from fastapi_observe.doctor.check import Check, set_by
from fastapi_observe.logs.handlers import SERVER_LOGGERS
from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.requests.exclusion import RequestFilter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.observability import Observability
    from fastapi_observe.settings.model import ObserveSettings

EXCLUDING_OPTIONS: Final = ("exclude_paths", "exclude_from", "exclude_urls")
MAX_NAMES_PER_CHECK: Final = 5
"""Routes or loggers that one check names."""


def check_lines(settings: ObserveSettings) -> Iterator[Check]:
    """Report what keeps lines from being written."""
    if not settings.logs:
        return
    found = []
    if not settings.log_requests:
        found.append(("requests have no line" + set_by(settings, "log_requests"), "unset log_requests to write them"))
    elif settings.log_level in {"warn", "error", "fatal"}:
        text = f"lines below {settings.log_level} are dropped, and with them those of successful requests"
        found.append((text + set_by(settings, "log_level"), "unset log_level, or set it to info"))
    if not settings.capture_logging:
        text = "records of logging are not written as lines" + set_by(settings, "capture_logging")
        found.append((text, "unset capture_logging to write them"))
    elif logging.root.manager.disable:
        text = f"logging.disable() drops records up to level {logging.getLevelName(logging.root.manager.disable)}"
        found.append((text, "call logging.disable(logging.NOTSET)"))
    for text, step in found:
        yield Check("lines", "look", text, step)


def check_loggers(observability: Observability) -> Iterator[Check]:
    """Name the loggers whose records have no line, or only from a level of their own on. The user's own come first."""
    settings = observability.settings
    if not (settings.logs and settings.capture_logging):
        return
    if names := _sort_loggers(observability, _disabled_loggers()):
        text = f"loggers are disabled, so their records have no line: {join_first(names)}"
        step = "set disable_existing_loggers to False in logging.config.dictConfig or fileConfig"
        yield Check("lines", "look", text, step)
    if names := _sort_loggers(observability, observability.logs.detached_loggers()):
        text = f"loggers do not propagate, so their records have no line: {join_first(names)}"
        yield Check("lines", "look", text, "remove propagate=False, unless their own handlers are enough")
    if source := set_by(settings, "quiet_loggers"):
        yield Check("lines", "ok", f"records below warn are dropped of {join_first([*settings.quiet_loggers])}{source}")
    strict = _sort_loggers(observability, observability.logs.strict_loggers())
    of_user = [name for name in strict if not _is_of_library(observability, name)]
    if of_user:
        text = (
            f"loggers have a level of their own above log_level, which those below them inherit: {join_first(of_user)}"
        )
        step = "remove their level (setLevel, or level in dictConfig), unless their lower records are not wanted"
        yield Check("lines", "look", text, step)
    if others := strict[len(of_user) :]:
        yield Check("lines", "ok", f"loggers of libraries have a level above log_level: {join_first(others)}")


def _sort_loggers(observability: Observability, names: list[str]) -> list[str]:
    """Return loggers in their order, those of the user's code first. Some of the others were created by us."""
    return sorted(names, key=partial(_is_of_library, observability))


def _is_of_library(observability: Observability, text: str) -> bool:
    name = text.partition(" ")[0]  # a level may follow
    created = {*SERVER_LOGGERS, *observability.settings.quiet_loggers}
    return name in created or not observability.own_code.includes_module(name)


def _disabled_loggers() -> list[str]:
    loggers = logging.root.manager.loggerDict.items()
    return sorted(name for name, logger in loggers if isinstance(logger, logging.Logger) and logger.disabled)


def check_exclusions(observability: Observability) -> Iterator[Check]:
    """Name the routes that are excluded from all or some signals."""
    request_filter = RequestFilter.from_settings(observability.settings)
    if not request_filter:
        return
    excluded, number, is_api_left = [], 0, False
    for route in observability.app.routes:
        path = getattr(route, "path", "")
        for method in sorted(getattr(route, "methods", None) or ()):
            bits = request_filter.excluded_signals({"path": path, "method": method})
            signals = [name for name, bit in SIGNAL_BITS.items() if bits & bit]
            is_api = getattr(route, "include_in_schema", True)
            number += bool(signals or is_api)  # without the pages of the documentation
            if signals:
                from_some = f" ({', '.join(signals)})" if len(signals) < len(SIGNAL_BITS) else ""
                excluded.append(f"{method} {path}{from_some}")
            elif is_api:
                is_api_left = True
    if excluded:
        settings = observability.settings
        options = [f"{name}{set_by(settings, name)}" for name in EXCLUDING_OPTIONS if getattr(settings, name)]
        yield Check(
            "exclusions",
            "ok" if is_api_left else "look",
            f"excluded routes ({len(excluded)} of {number}): {join_first(excluded)}",
            f"correct {' or '.join(options)}",
        )


def join_first(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MAX_NAMES_PER_CHECK
    return ", ".join(names[:MAX_NAMES_PER_CHECK]) + (f" and {more} more" if more > 0 else "")
