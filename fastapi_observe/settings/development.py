"""Whether this process runs in development; what is not known to be development is production."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_development(environment: str, arguments: Sequence[str] | None = None) -> bool:
    """Return whether the environment is `development`, or the command line is that of `uvicorn --reload`.

    `fastapi dev` sets `FASTAPI_ENV=development`. `arguments` are those of this process unless given.
    """
    if environment == "development":
        return True
    name, *options = arguments if arguments is not None else sys.argv or [""]
    parts = Path(name).parts[-2:]
    return "--reload" in options and ("uvicorn" in parts or "uvicorn.exe" in parts)
