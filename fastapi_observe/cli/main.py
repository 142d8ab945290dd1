"""The command line: `fastapi-observe`, or `python -m fastapi_observe`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_observe.cli.cardinality import add_cardinality
from fastapi_observe.cli.cost import add_cost
from fastapi_observe.cli.settings import add_settings
from fastapi_observe.cli.slo import add_slo
from fastapi_observe.internal.version import package_version

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. `arguments` default to those of the process."""
    # Python before 3.14 would call a module that is run with -m `__main__.py`.
    name = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m fastapi_observe" if name == "__main__.py" else name,
        description="Traces, metrics and logs for FastAPI and Starlette.",
    )
    parser.add_argument("--version", action="version", version=f"fastapi-observe {package_version('fastapi-observe')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_settings(commands)
    add_cardinality(commands)
    add_cost(commands)
    add_slo(commands)
    args = parser.parse_args(arguments)
    return int(args.run(args))
