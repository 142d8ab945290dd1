"""`Check`: one result of `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.settings.model import ObserveSettings

Verdict = Literal["ok", "look", "wrong"]
"""`look`: it may be intended. `wrong`: something is lost, shown to others, or does not work."""


class Check(NamedTuple):
    """A finding about one subject. `step` is the next step, empty if there is nothing to do."""

    subject: str
    verdict: Verdict
    found: str
    step: str = ""


def set_by(settings: ObserveSettings, option: str) -> str:
    """Return what set an option, in parentheses: a variable, or the argument. Empty for a default."""
    source = settings.sources()[option]
    return {"default": "", "argument": f" ({option} of install)"}.get(source, f" ({source})")


def how_to_unset(settings: ObserveSettings, option: str) -> str:
    """Return the step that takes back what set an option: its variable, or its argument."""
    source = settings.sources()[option]
    return f"remove {option} from install" if source == "argument" else f"unset {source}"


def run_checks(*groups: Callable[[], Iterator[Check]]) -> list[Check]:
    """Return the checks of all groups. A group that raises becomes a check of its own."""
    checks: list[Check] = []
    for group in groups:
        try:
            checks.extend(group())
        except Exception as exc:  # noqa: BLE001 - the other checks are wanted all the more
            found = f"the check failed: {type(exc).__name__}: {exc}"
            checks.append(Check("doctor", "look", found, "please report it, with this line"))
    return checks
