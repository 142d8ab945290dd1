"""The version of the package, and the addresses of its documentation and its issues."""

from __future__ import annotations

from typing import Final

DOCUMENTATION: Final = "https://fastapi-observe.github.io/fastapi-observe/"


REPORT: Final = "Please report it: https://github.com/fastapi-observe/fastapi-observe/issues"
"""The last sentence of a message about an error of this package."""


def documentation_url(page: str) -> str:
    """Return the address of a page of the documentation: `reference/metrics`, `reference/metrics#export`."""
    name, _, heading = page.partition("#")
    return f"{DOCUMENTATION}{name}/" + (f"#{heading}" if heading else "")


def package_version(distribution: str) -> str:
    """Return the installed version of a distribution, or `unknown` if it runs from a source tree."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
