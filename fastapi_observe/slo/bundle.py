"""Everything that is made from an app, as one folder: rules and their tests, dashboard, alert routing, runbooks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.slo.datasources import (
    SOURCES,
    make_datasources,
    make_prometheus,
    make_retention,
    prometheus_notes,
)
from fastapi_observe.slo.grafana.dashboard import dashboard_text, make_dashboard
from fastapi_observe.slo.prometheus import yaml
from fastapi_observe.slo.prometheus.alertmanager import NOTES, make_alertmanager
from fastapi_observe.slo.prometheus.rule_tests import test_file
from fastapi_observe.slo.prometheus.rules import header, rule_file
from fastapi_observe.slo.runbooks.pages import GENERATED_COMMENT, MarkerError, keep_user_sections, make_runbooks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.grafana.features import Features
    from fastapi_observe.slo.plan import SLOPlan

RUNBOOKS: Final = "runbooks/"
GENERATED_MARKER: Final = "Made by fastapi-observe"
"""What stands in every file that we made, and in no other."""

HEAD: Final = 1000
"""Characters of a file in which that stands."""

REPLACED: Final = "\ufffd"
"""What stands for bytes that are no text."""

VERSION: Final = re.compile(r"(Made by fastapi-observe) \S+(?= from )")


class UnmanagedFileError(Exception):
    """Files that we did not make stand where ours would; they are left alone."""


class BundleDiff(NamedTuple):
    """How a folder differs from what would be made: names of files."""

    missing: tuple[str, ...]
    different: tuple[str, ...]
    left_over: tuple[str, ...]
    """Made by us once, and no more."""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.different or self.left_over)


def make_bundle(plan: SLOPlan, settings: ObserveSettings, features: Features) -> dict[str, str]:
    """Return the files by their names in the folder; the same app gives the same files.

    Raises `ValueError` with all that is wrong with the objectives.
    """
    head = header(plan)
    general = head.partition("\n# Configuration")[0] + "\n"
    files = {
        "rules.yml": rule_file(plan),
        "rules_test.yml": test_file(plan, "rules.yml"),
        "dashboard.json": dashboard_text(make_dashboard(plan, features)),
        "alertmanager.yml": general + NOTES + yaml.dump(make_alertmanager()),
        "datasources.yml": general + SOURCES + yaml.dump(make_datasources(plan, features)),
        "prometheus.yml": general + prometheus_notes(plan, features) + yaml.dump(make_prometheus(plan, settings)),
        "RETENTION.md": GENERATED_COMMENT + "\n\n" + make_retention(plan),
    }
    return files | {RUNBOOKS + name: page for name, page in make_runbooks(plan).items()}


def merge_user_edits(files: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the files with what people wrote into those of the folder. Raises `ForeignError`."""
    fitted, foreign = {}, []
    for name, made in files.items():
        existing = read(folder / name)
        fitted[name] = made
        if existing is None:
            continue
        if not is_ours(existing):
            foreign.append(f"{folder / name} was not made by fastapi-observe: move it, or write elsewhere with -o")
        elif REPLACED in existing:
            foreign.append(f"{folder / name} is not UTF-8, what was written into it would be lost: save it as UTF-8")
        elif name.startswith(RUNBOOKS):
            try:
                fitted[name] = keep_user_sections(made, existing)
            except MarkerError as error:
                foreign.append(f"{folder / name}: {error}")
    if foreign:
        raise UnmanagedFileError("\n".join(foreign))
    return fitted


def compare(files: Mapping[str, str], folder: Path) -> BundleDiff:
    """Compare fitted files with a folder; the version of fastapi-observe in their heads does not count."""
    found = {name: read(folder / name) for name in files}
    return BundleDiff(
        tuple(name for name, text in found.items() if text is None),
        tuple(name for name, text in found.items() if text is not None and _bare(text) != _bare(files[name])),
        tuple(_left_over(files, folder)),
    )


def write(files: Mapping[str, str], folder: Path) -> BundleDiff:
    """Write fitted files into a folder, those that differ only; nothing is deleted. Return how it differed before."""
    before = compare(files, folder)
    for name in (*before.missing, *before.different):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name], encoding="utf-8")
    return before


def read(path: Path) -> str | None:
    """Return the text of a file, None if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def is_ours(text: str) -> bool:
    """Say whether we made a file."""
    return GENERATED_MARKER in text[:HEAD]


def _left_over(files: Mapping[str, str], folder: Path) -> list[str]:
    pages = (path for path in sorted((folder / RUNBOOKS).glob("*.md")) if RUNBOOKS + path.name not in files)
    return [RUNBOOKS + path.name for path in pages if is_ours(read(path) or "")]


def _bare(text: str) -> str:
    return VERSION.sub(r"\1", text, count=1)
