"""Values of the `endpoint` label for requests that no route answered."""

from __future__ import annotations

from typing import Final

UNMATCHED: Final = "unmatched"
REDIRECT: Final = "redirect"
