"""`Instrumentors`: switches instrumentors on with the tracer provider of an app, and off again."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.instrumentors.discovery import describe_conflict, normalize_name, observed_instrumentors
from fastapi_observe.internal.opentelemetry import revert_instrumentor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import TracerProvider

    from fastapi_observe.instrumentors.discovery import Candidate

ALREADY_ON: Final = "already switched on"
_LOGGER = logging.getLogger("fastapi_observe")


class Instrumentors:
    """The instrumentors that an app has switched on, by name; `left_alone` has the reason for each other one."""

    def __init__(self) -> None:
        self.switched_on: dict[str, Any] = {}
        self.left_alone: dict[str, str] = {}

    def switch_on(self, candidates: Sequence[Candidate], provider: TracerProvider) -> None:
        """Switch on what can be. An instrumentor that fails is left off, with a warning."""
        for candidate in candidates:
            reason = candidate.reason or self._switch_on(candidate, provider)
            if reason:
                self.left_alone[candidate.name] = reason
            if candidate.entry_point is None:
                _LOGGER.warning(
                    "instrument names %s, but no such OpenTelemetry instrumentor is installed. Install its package "
                    "(pip install %s), or remove the name.",
                    candidate.name,
                    candidate.package,
                )

    def _switch_on(self, candidate: Candidate, provider: TracerProvider) -> str:
        """Switch one on. Returns why that was not possible."""
        from opentelemetry.instrumentation.dependencies import get_dependency_conflicts  # noqa: PLC0415 - see discovery

        instrumentor: Any = None
        try:
            instrumentor = candidate.entry_point.load()()  # type: ignore[union-attr]
            if getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
                return ALREADY_ON
            conflict = get_dependency_conflicts(instrumentor.instrumentation_dependencies())
            if conflict is not None:  # found here, it is no error on the log
                return describe_conflict(conflict)
            instrumentor.instrument(tracer_provider=provider)
        except ModuleNotFoundError as exc:
            if str(exc.name).startswith("opentelemetry"):
                self._warn(candidate, exc)
            return f"{exc.name} is not installed"
        except Exception as exc:  # noqa: BLE001 - another package may raise anything
            self._warn(candidate, exc)
            with contextlib.suppress(Exception):  # the first failure is logged already
                revert_instrumentor(instrumentor)
            return "failed"
        if not getattr(instrumentor, "is_instrumented_by_opentelemetry", True):
            return "refused by the package"
        self.switched_on[candidate.name] = instrumentor
        return ""

    def _warn(self, candidate: Candidate, exc: Exception) -> None:
        _LOGGER.warning(
            "The OpenTelemetry instrumentor %s could not be switched on: %s: %.200s. Update its package (pip install "
            "--upgrade %s), or leave it out with instrument=[...].",
            candidate.name,
            type(exc).__name__,
            exc,
            candidate.package,
        )

    def log(self) -> None:
        """Write the line about what was switched on and what was left alone."""
        left_alone = ", ".join(f"{name} ({reason})" for name, reason in self.left_alone.items())
        _LOGGER.info(
            "OpenTelemetry instrumentors switched on: %s. Left alone: %s. The option instrument chooses.",
            ", ".join(self.switched_on) or "none",
            left_alone or "none",
        )

    def leave_to_engine(self, engine: Any) -> None:
        """Switch off the instrumentors of an engine and its driver, because the engine is observed from now on.

        Where the driver runs in a thread of its own (aiosqlite), its spans would not be found to be the same calls.
        """
        observed = observed_instrumentors([engine])
        for name in [name for name in self.switched_on if normalize_name(name) in observed]:
            self.left_alone[name] = reason = observed[normalize_name(name)]
            self._switch_off(name, self.switched_on.pop(name))
            _LOGGER.info("The OpenTelemetry instrumentor %s was switched off: %s.", name, reason)

    def hand_over(self, heir: Instrumentors) -> None:
        """Give another app the instrumentors that it wanted to switch on too. It switches them off when it closes."""
        for name in [name for name in self.switched_on if heir.left_alone.get(name) == ALREADY_ON]:
            heir.switched_on[name] = self.switched_on.pop(name)
            del heir.left_alone[name]

    def switch_off(self) -> None:
        """Switch off what was switched on, the last one first. Idempotent."""
        while self.switched_on:
            self._switch_off(*self.switched_on.popitem())

    def _switch_off(self, name: str, instrumentor: Any) -> None:
        try:
            if getattr(instrumentor, "is_instrumented_by_opentelemetry", True):
                instrumentor.uninstrument()
        except Exception as exc:  # noqa: BLE001 - as above
            _LOGGER.warning(
                "The OpenTelemetry instrumentor %s could not be switched off: %s: %.200s. Its library may still make "
                "spans. Update its package, or leave it out with instrument=[...].",
                name,
                type(exc).__name__,
                exc,
            )
