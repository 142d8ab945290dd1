"""The options by subject, for the documentation and the command `settings`."""

from __future__ import annotations

from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.settings.sources import option_metadata


def options_by_subject() -> dict[str, list[str]]:
    """Return the names of the options of each subject, in the order of `ObserveSettings`."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for name, field in ObserveSettings.model_fields.items():
        if subject := option_metadata(field).subject:
            names = found[subject] = []
        names.append(name)
    return found
