"""Values of the `endpoint` label for requests without a matched route."""

from __future__ import annotations

from typing import Final

UNMATCHED: Final = "unmatched"
REDIRECT: Final = "redirect"
