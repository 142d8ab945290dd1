"""`Instrumentors`: switches instrumentors on with the tracer provider of an app, and off again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from fastapi_observe.instrumentors.discovery import (
    describe_conflict,
    normalize_instrumentor_name,
    observed_instrumentors,
)
from fastapi_observe.internal.opentelemetry import revert_instrumentor
from fastapi_observe.records.exceptions import exception_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Tracer, TracerProvider

    from fastapi_observe.instrumentors.discovery import Candidate
    from fastapi_observe.instrumentors.provider import InstrumentorTracer

ALREADY_ON: Final = "already switched on"
FAILED: Final = "failed"
_LOGGER = logging.getLogger("fastapi_observe")


class Instrumentors:
    """The instrumentors that an app has switched on, by name; `left_alone` has the reason for each other one.

    `tracers` are those of the app's provider for the tracers that instrumentors have.
    """

    def __init__(self) -> None:
        self.tracers: WeakKeyDictionary[InstrumentorTracer, Tracer] = WeakKeyDictionary()
        self.switched_on: dict[str, Any] = {}
        self.left_alone: dict[str, str] = {}

    def switch_on(self, candidates: Sequence[Candidate], provider: TracerProvider) -> None:
        """Switch on what can be. An instrumentor that fails is left off, with a warning."""
        self._decide(candidates, lambda candidate, instrumentor: self._instrument(candidate, instrumentor, provider))

    def preview(self, candidates: Sequence[Candidate]) -> None:
        """Fill `switched_on` and `left_alone` as `switch_on` would, without switching anything on."""
        self._decide(candidates, lambda _candidate, _instrumentor: "")

    def _decide(self, candidates: Sequence[Candidate], switch_on: Callable[[Candidate, Any], str]) -> None:
        """Load each candidate, and call `switch_on` with what can be. It returns why it was not possible."""
        for candidate in candidates:
            instrumentor, reason = (None, candidate.reason) if candidate.reason else self._load(candidate)
            reason = reason or switch_on(candidate, instrumentor)
            if reason:
                self.left_alone[candidate.name] = reason
            else:
                self.switched_on[candidate.name] = instrumentor
            if candidate.entry_point is None:
                _LOGGER.warning(
                    "instrument names %s, but no such OpenTelemetry instrumentor is installed. Install its package "
                    "(pip install %s), or remove the name.",
                    candidate.name,
                    candidate.package,
                )

    def _load(self, candidate: Candidate) -> tuple[Any, str]:
        """Return an instrumentor, and why it cannot be switched on; empty if it can."""
        from opentelemetry.instrumentation.dependencies import get_dependency_conflicts  # noqa: PLC0415 - see discovery

        try:
            instrumentor: Any = candidate.entry_point.load()()  # type: ignore[union-attr]
            if getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
                return instrumentor, ALREADY_ON
            conflict = get_dependency_conflicts(instrumentor.instrumentation_dependencies())
        except KeyboardInterrupt:
            raise
        except ModuleNotFoundError as exc:
            is_library = exc.name is not None and not exc.name.startswith("opentelemetry")
            if not is_library:
                self._warn(candidate, exc)
            return None, FAILED if exc.name is None else f"{exc.name} is not installed"
        except BaseException as exc:  # noqa: BLE001 - another package may raise anything, such as SystemExit
            self._warn(candidate, exc)
            return None, FAILED
        # Found here, a conflict is not logged as an error.
        return instrumentor, "" if conflict is None else describe_conflict(conflict)

    def _instrument(self, candidate: Candidate, instrumentor: Any, provider: TracerProvider) -> str:
        """Switch one on. Returns why that was not possible."""
        try:
            instrumentor.instrument(tracer_provider=provider)
            is_on = getattr(instrumentor, "is_instrumented_by_opentelemetry", True)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - as above
            self._warn(candidate, exc)
            self._revert(instrumentor)
            return FAILED
        return "" if is_on else "refused by the package"

    def _revert(self, instrumentor: Any) -> None:
        try:
            revert_instrumentor(instrumentor)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001, S110 - the first failure is logged already
            pass

    def _warn(self, candidate: Candidate, exc: BaseException) -> None:
        _LOGGER.warning(
            "The OpenTelemetry instrumentor %s could not be switched on: %s: %.200s. Update its package (pip install "
            "--upgrade %s), or leave it out with instrument=[...].",
            candidate.name,
            type(exc).__name__,
            exception_message(exc),
            candidate.package,
        )

    def __str__(self) -> str:
        left_alone = ", ".join(f"{name} ({reason})" for name, reason in self.left_alone.items())
        switched_on = ", ".join(self.switched_on) or "none"
        return f"OpenTelemetry instrumentors switched on: {switched_on}. Left alone: {left_alone or 'none'}"

    def log(self) -> None:
        """Write the line about what was switched on and what was left alone."""
        _LOGGER.info("%s. The option instrument chooses.", self)

    def leave_to_engine(self, engine: Any) -> None:
        """Switch off the instrumentors of an engine and its driver, because the engine is observed from now on.

        Where the driver runs in a thread of its own (aiosqlite), its spans would not be found to be the same calls.
        """
        observed = observed_instrumentors([engine])
        for name in [name for name in self.switched_on if normalize_instrumentor_name(name) in observed]:
            self.left_alone[name] = reason = observed[normalize_instrumentor_name(name)]
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
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - as above
            _LOGGER.warning(
                "The OpenTelemetry instrumentor %s could not be switched off: %s: %.200s. Its library may still make "
                "spans. Update its package, or leave it out with instrument=[...].",
                name,
                type(exc).__name__,
                exception_message(exc),
            )
