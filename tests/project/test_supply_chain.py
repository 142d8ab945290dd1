"""What is installed for the tests is pinned and hashed, and is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)(?:\[[a-z0-9,-]+\])?==(?P<version>[^ ;]+)(?: ; (?P<marker>.+))?")


def pins(name: str) -> dict[str, list[str]]:
    """Return the versions of a lock file by package: several where they depend on the platform."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        pin, *hashes = re.split(r"\s+--hash=", line)
        match = PIN.fullmatch(pin.strip())
        assert match is not None, line[:100]
        assert hashes, f"{match['name']} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each) for each in hashes), match["name"]
        found.setdefault(canonicalize_name(match["name"]), []).append(match["version"])
    return found


def asked(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, the extras of our own unfolded."""
    wanted = [Requirement(each) for each in PROJECT["dependencies"]] if "" in extras else []
    for extra in extras:
        for each in map(Requirement, PROJECT["optional-dependencies"].get(extra, [])):
            if each.name == PROJECT["name"]:
                wanted += asked(*each.extras)
            else:
                wanted.append(each)
    return wanted


@pytest.mark.parametrize(("lock", "extras"), [("runtime", ("",)), ("test", ("", "test")), ("docs", ("docs",))])
def test_the_lock_is_what_is_asked_for(lock: str, extras: tuple[str, ...]) -> None:
    """Every dependency is pinned to a version that its range allows; `make lock` fixes what fails here."""
    pinned = pins(lock)
    for wanted in asked(*extras):
        versions = pinned[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version, prereleases=True) for version in versions), wanted


def test_the_tests_run_what_users_install() -> None:
    """The lock of the tests holds the runtime's packages at the same versions."""
    tested = pins("test")
    for name, versions in pins("runtime").items():
        assert tested[name] == versions


def test_no_registry_is_named() -> None:
    """Where packages come from is the business of who installs them."""
    for path in (ROOT / "requirements").iterdir():
        assert "://" not in path.read_text("utf-8")


def test_the_workflows_name_actions_by_commit() -> None:
    """A tag of an action can be moved to other code; `.github/dependabot.yml` keeps the commits current."""
    used = [
        line
        for file in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for line in re.findall(r"\buses: (.+)", file.read_text("utf-8"))
    ]
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
