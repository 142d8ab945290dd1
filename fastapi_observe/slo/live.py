"""The objectives of an installed app: checked at install, resolved against the routes and counted from startup on."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.sources import SettingsError
from fastapi_observe.slo.decorator import has_declared_objectives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.error_budgets import ErrorBudgets
    from fastapi_observe.metrics.objectives import ObjectiveSpec
    from fastapi_observe.metrics.service import MetricsService
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan


STATUS_CLASS_CODES: Final = {"5xx": ("500", "503"), "4xx": ("400", "404", "422")}
"""Status codes of a class whose series start at 0; a series for each of the hundred codes would be too many."""


_reported_later: Final[ContextVar[bool]] = ContextVar("_reported_later", default=False)


@contextmanager
def invalid_objectives_reported_later() -> Iterator[None]:
    """Let `install` accept invalid objectives in a block, for a command that reports them with those about routes."""
    token = _reported_later.set(True)
    try:
        yield
    finally:
        _reported_later.reset(token)


class LiveObjectives:
    """The objectives of one install; `budgets` is None until startup, and if the app has no objectives.

    `latency_thresholds` maps the endpoints of latency objectives to the lowest threshold, in seconds.

    Raises `SettingsError` for objectives that are invalid regardless of the routes.
    """

    # An app without objectives must not pay for them: everything else of slo/ is imported only where one is declared.

    def __init__(self, app: Any, settings: ObserveSettings, internal_errors: InternalErrors) -> None:
        self.budgets: ErrorBudgets | None = None
        self.latency_thresholds: dict[str, float] = {}
        self._app = app
        self._settings = settings
        self._internal_errors = internal_errors
        self._resolved = not settings.metrics
        if (settings.slos or settings.slo_options is not None) and not _reported_later.get():
            _check_settings(settings)

    def start(self, metrics: MetricsService) -> None:
        """Resolve the objectives against the routes and create their series; idempotent.

        Must run before the workers share their values, because it adds histogram buckets.
        """
        if not self._resolved:
            self._resolved = True
            try:
                if self._settings.slos or has_declared_objectives(self._app):
                    self._resolve(metrics)
            except Exception as exc:  # noqa: BLE001 - an internal error never stops the app
                self._internal_errors("objectives", exc)

    def watch(self) -> None:
        """Start to take snapshots for burn rates.

        Must run after the workers share their values: a new worker would take what the others have counted so far for
        events of its first minutes.
        """
        if self.budgets is not None:
            self.budgets.start()

    def stop(self) -> None:
        """Stop to take snapshots."""
        if self.budgets is not None:
            self.budgets.stop()

    def _resolve(self, metrics: MetricsService) -> None:
        from fastapi_observe.metrics.error_budgets import ErrorBudgets, ObjectiveTarget  # noqa: PLC0415 - see the class
        from fastapi_observe.slo.burn_rates import budget  # noqa: PLC0415
        from fastapi_observe.slo.plan import make_plan  # noqa: PLC0415

        plan = make_plan(self._app, self._settings)
        _log_problems(plan)
        invalid = {problem.slo for problem in plan.errors}
        valid = [slo for slo in plan.slos if slo.name not in invalid]
        for slo in valid:
            threshold = getattr(slo.objective, "threshold", None)
            if threshold is not None:
                for _, endpoint in slo.endpoints:
                    lowest = self.latency_thresholds.get(endpoint, threshold)
                    self.latency_thresholds[endpoint] = min(lowest, threshold)
        if valid:
            targets = [ObjectiveTarget(slo.name, float(budget(slo.percent))) for slo in valid]
            counts = metrics.count_objectives([_make_spec(slo, plan) for slo in valid])
            self.budgets = ErrorBudgets(targets, float(plan.period), plan.hash, counts, self._internal_errors)
            metrics.register_collector(self.budgets)


def _check_settings(settings: ObserveSettings) -> None:
    from fastapi_observe.slo.plan import check_objective_settings  # noqa: PLC0415 - only for apps with objectives

    problems = check_objective_settings(settings)
    if problems:
        raise SettingsError([f"slo_options: {each}" if each.slo == "all" else f"slos: {each}" for each in problems])


def _log_problems(plan: SLOPlan) -> None:
    """Log the problems of a plan, one record for each level."""
    log = logging.getLogger("fastapi_observe")
    if plan.errors:
        errors = "; ".join(map(str, plan.errors))
        log.error("Invalid objectives are ignored: %s. Run `python -m fastapi_observe slo check` for details.", errors)
    warnings = "; ".join(str(problem) for problem in plan.problems if problem.level == "warning")
    if warnings:
        log.warning("Check these objectives: %s", warnings)


def _make_spec(slo: ResolvedObjective, plan: SLOPlan) -> ObjectiveSpec:
    from fastapi_observe.metrics.objectives import ObjectiveSpec  # noqa: PLC0415 - only for apps with objectives
    from fastapi_observe.settings.objectives import Latency  # noqa: PLC0415

    objective = slo.objective
    excluded = frozenset(plan.excluded_templates)
    if isinstance(objective, Latency):
        return ObjectiveSpec(slo.groups, excluded, None, objective.threshold, slo.endpoints, ("200", "500"))
    codes = {"200", "500"}
    for status in objective.bad_statuses:
        codes.update(STATUS_CLASS_CODES.get(status.lower(), (status,)))
    bad = re.compile("|".join(status.lower().replace("x", r"\d") for status in objective.bad_statuses))
    return ObjectiveSpec(
        slo.groups, excluded, bad, 0.0, slo.endpoints, tuple(sorted(code for code in codes if code.isdecimal()))
    )
