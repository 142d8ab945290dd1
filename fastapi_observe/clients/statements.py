"""SQL text without values: what a span may show of a statement."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 2048
"""Characters of a statement that are looked at and shown."""

STANDARD_QUOTES: Final = frozenset({"postgresql", "sqlite", "oracle.db", "microsoft.sql_server", "cockroachdb"})
"""Systems (`db.system.name`) where `"..."` is a name and `#` no comment; elsewhere it may be a value and is hidden."""

# No repeat gives back what it took (`*+`) and each alternative ends at the latest with the text: the time is linear.
# What systems read differently hides the whole rest: a backslash before the closing quote, a quote behind `#`,
# a comment in a comment, Oracle's q'[...]'.
_TOKENS: Final = r"""
      (?P<value>
          (?<![\w$])[nN]?[qQ]'.*
        | '(?:[^'\\]|\\[^']|'')*+(?:'|\\.*|$)
        | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w{0,62})?)\$.*?(?:\$(?P=tag)\$|$)
        | (?<![\w$])\d[\w.]*+
      )
    | (?P<comment> --[^\n]*+ | /\*(?:[^*/]|\*(?!/)|/(?!\*))*+(?:\*/|.*) )
    | (?P<name> "[^"'\\]*+" | `[^`'"]*+` )
    | (?P<other> "(?:[^"\\]|\\[^"]|"")*+(?:"|\\.*|$) | `[^`]*+(?:`|$) )
"""
_HASH_COMMENT: Final = r"| (?P<hash> \#(?:[^\n'\"]*+(?=\n|$)|.*) )"
_STANDARD: Final = re.compile(_TOKENS, re.DOTALL | re.VERBOSE)
_ANY: Final = re.compile(_TOKENS + _HASH_COMMENT, re.DOTALL | re.VERBOSE)


def sanitise(statement: str, system: str = "other_sql") -> str:
    """Return the statement with every literal as `?` and without comments, at most 2,048 characters.

    Where systems read the same text differently (`system` is the `db.system.name`) it hides too much, never too little.
    """
    standard = system in STANDARD_QUOTES

    def replace(match: re.Match[str]) -> str:
        if match.lastgroup in {"comment", "hash"}:
            return " "
        return match[0] if match.lastgroup == "name" and (standard or match[0][0] == "`") else "?"

    return (_STANDARD if standard else _ANY).sub(replace, statement[:LONGEST]).strip()[:LONGEST]
