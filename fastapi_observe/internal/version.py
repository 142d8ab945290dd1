"""`package_version`: the installed version of a distribution."""

from __future__ import annotations


def package_version(distribution: str) -> str:
    """Return the installed version of a distribution, or `unknown` if it runs from a source tree."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
