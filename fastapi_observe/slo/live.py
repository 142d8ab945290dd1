"""What an install does about its objectives: checks them, counts for them from the start on, tells what is wrong."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.settings.sources import SettingsError

if TYPE_CHECKING:
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.error_budgets import ErrorBudgets
    from fastapi_observe.metrics.objectives import ObjectiveSpec
    from fastapi_observe.metrics.service import MetricsService
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan


STATUS_CLASS_CODES: Final = {"5xx": ("500", "503"), "4xx": ("400", "404", "422")}
"""Codes of a class that begin at 0: all hundred would be more than the rest of the metric."""

DECORATOR: Final = "fastapi_observe.slo.decorator"
"""The module behind `@slo`: where nobody has used that, it is not imported and no path operation has objectives."""


class LiveObjectives:
    """The objectives of one install; `budgets` are there once the app has started, if it promises anything.

    Without objectives nothing is imported and nothing done. Raises SettingsError for objectives that are wrong whatever
    the routes are.
    """

    def __init__(self, app: Any, settings: ObserveSettings, faults: InternalErrors) -> None:
        self.budgets: ErrorBudgets | None = None
        self._app = app
        self._settings = settings
        self._faults = faults
        self._begun = not settings.metrics
        if settings.slos or settings.slo_options is not None:
            _check(settings)

    def start(self, metrics: MetricsService) -> None:
        """Resolve them against the routes, once, and begin to count; before the workers share their cells."""
        if not self._begun:
            self._begun = True
            try:
                if self._settings.slos or DECORATOR in sys.modules:
                    self._begin(metrics)
            except Exception as exc:  # noqa: BLE001 - a fault of ours never stops the app
                self._faults("objectives", exc)

    def watch(self) -> None:
        """Take snapshots from now on; after the workers share their cells, else what others counted would be new."""
        if self.budgets is not None:
            self.budgets.start()

    def stop(self) -> None:
        """End what `watch` began to run."""
        if self.budgets is not None:
            self.budgets.stop()

    def _begin(self, metrics: MetricsService) -> None:
        from fastapi_observe.metrics.error_budgets import ErrorBudgets, ObjectiveTarget  # noqa: PLC0415 - see the class
        from fastapi_observe.slo.burn_rates import budget  # noqa: PLC0415
        from fastapi_observe.slo.plan import make_plan  # noqa: PLC0415

        plan = make_plan(self._app, self._settings)
        _tell(plan)
        wrong = {problem.slo for problem in plan.errors}
        good = [slo for slo in plan.slos if slo.name not in wrong]
        if good:
            promises = [ObjectiveTarget(slo.name, float(budget(slo.percent))) for slo in good]
            tally = metrics.count_objectives([_counted(slo, plan) for slo in good])
            self.budgets = ErrorBudgets(promises, float(plan.period), plan.hash, tally, self._faults)
            metrics.register_collector(self.budgets)


def _check(settings: ObserveSettings) -> None:
    from fastapi_observe.slo.plan import check_settings  # noqa: PLC0415 - only who promises something

    problems = check_settings(settings)
    if problems:
        raise SettingsError([f"slo_options: {each}" if each.slo == "all" else f"slos: {each}" for each in problems])


def _tell(plan: SLOPlan) -> None:
    """Say what is wrong, each level in one line."""
    log = logging.getLogger("fastapi_observe")
    if plan.errors:
        shown = "; ".join(map(str, plan.errors))
        log.error("objectives are wrong, they are not counted and no rules can be made of them: %s", shown)
    warnings = "; ".join(str(problem) for problem in plan.problems if problem.level == "warning")
    if warnings:
        log.warning("objectives may not do what they seem to: %s", warnings)


def _counted(slo: ResolvedObjective, plan: SLOPlan) -> ObjectiveSpec:
    from fastapi_observe.metrics.objectives import ObjectiveSpec  # noqa: PLC0415
    from fastapi_observe.settings.objectives import Latency  # noqa: PLC0415 - only who promises something

    objective = slo.objective
    if isinstance(objective, Latency):
        return ObjectiveSpec(
            slo.groups, frozenset(plan.excluded_templates), None, objective.threshold, slo.endpoints, ("200", "500")
        )
    codes = sorted(
        {
            "200",
            "500",
            *(code for bad in objective.bad_statuses for code in STATUS_CLASS_CODES.get(bad.lower(), (bad,))),
        }
    )
    codes = [code for code in codes if code.isdecimal()]
    bad = re.compile("|".join(code.lower().replace("x", r"\d") for code in objective.bad_statuses))
    return ObjectiveSpec(slo.groups, frozenset(plan.excluded_templates), bad, 0.0, slo.endpoints, tuple(codes))
