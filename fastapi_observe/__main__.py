"""`python -m fastapi_observe`."""

from __future__ import annotations

import sys

from fastapi_observe.cli.main import main

if __name__ == "__main__":  # pragma: no branch
    sys.exit(main())
