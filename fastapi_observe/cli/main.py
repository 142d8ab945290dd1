"""The command line: `python -m fastapi_observe` and its subcommands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastapi_observe.cli.cardinality import add_cardinality
from fastapi_observe.cli.files import add_bundle
from fastapi_observe.cli.settings import add_settings
from fastapi_observe.cli.slo import add_slo
from fastapi_observe.internal.version import package_version

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; `arguments` default to those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m fastapi_observe", description="Traces, metrics and logs for FastAPI and Starlette."
    )
    parser.add_argument("--version", action="version", version=f"fastapi-observe {package_version('fastapi-observe')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_settings(commands)
    add_cardinality(commands)
    add_slo(commands)
    add_bundle(commands)
    args = parser.parse_args(arguments)
    return int(args.run(args))
