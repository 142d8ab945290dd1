"""SQL text without values: what a span may show of a statement."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 2048
"""Characters of a statement that are looked at and shown."""

# Each alternative begins with another character and none repeats a repeat: the time is linear in the text.
_LITERAL: Final = re.compile(
    r"'(?:[^'\\]|\\.|'')*(?:'|$)|\"\"|(?<![\w$])\d[\w.]*|\$(?P<tag>\w{0,16})\$.*?(?:\$(?P=tag)\$|$)|--[^\n]*|/\*.*?(?:\*/|$)",
    re.DOTALL,
)


def sanitise(statement: str) -> str:
    """Return the statement with every literal as `?` and without comments, at most 2,048 characters."""

    def replace(match: re.Match[str]) -> str:
        return "" if match[0].startswith(("--", "/*")) else "?"

    return _LITERAL.sub(replace, statement[:LONGEST]).strip()
