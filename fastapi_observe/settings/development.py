"""Detection of development: a process that is not known to run in it runs in production."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_observe.internal.uvicorn import is_imported_with_reload

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_development(environment: str) -> bool:
    """Return whether the environment is `development`, or uvicorn restarts this process when a file changes.

    `fastapi dev` sets `FASTAPI_ENV=development`.
    """
    return environment == "development" or is_reloaded()


def is_reloaded(arguments: Sequence[str] | None = None) -> bool:
    """Return whether the command line is that of `uvicorn --reload`, or uvicorn imports the app with `reload=True`.

    `arguments` are those of this process unless given.
    """
    name, *options = arguments if arguments is not None else sys.argv or [""]
    parts = Path(name).parts[-2:]
    return ("--reload" in options and ("uvicorn" in parts or "uvicorn.exe" in parts)) or is_imported_with_reload()
