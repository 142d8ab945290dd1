"""`event_of`: what a statement does to a transaction, if that is all it does."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 256
"""Characters that a command about transactions may have; what is longer is a query."""

_STARTS: Final = frozenset({"BEG", "STA", "COM", "END", "ROL", "ABO", "SAV", "REL"})
_COMMAND: Final = re.compile(
    r"""\s*+(?:
      (?P<begin> (?:BEGIN|START\s++TRANSACTION) (?>(?:[\s,]++(?:WORK|TRAN|TRANSACTION|DEFERRED|IMMEDIATE|EXCLUSIVE
          |ISOLATION|LEVEL|SERIALIZABLE|REPEATABLE|READ|COMMITTED|UNCOMMITTED|ONLY|WRITE|NOT|DEFERRABLE)\b)*) )
    | (?P<commit> (?:COMMIT|END) (?>(?:\s++(?:WORK|TRANSACTION|TRAN)\b)?) )
    | (?P<rollback> (?:ROLLBACK|ABORT) (?>(?:\s++(?:WORK|TRANSACTION|TRAN)\b)?) )
    | (?P<savepoint> (?:SAVEPOINT|SAVE\s++TRAN(?:SACTION)?) \s++[^\s;]++ )
    | (?P<rollback_savepoint> ROLLBACK\s++
        (?:(?:(?:WORK|TRANSACTION)\s++)?TO\s++(?:SAVEPOINT\s++)?|TRAN(?:SACTION)?\s++) [^\s;]++ )
    | (?P<release_savepoint> RELEASE\s++(?:SAVEPOINT\s++)?[^\s;]++ )
    )\s*+;?\s*+""",
    re.IGNORECASE | re.VERBOSE,
)
"""Not Oracle's `BEGIN work(); END;`, not SQL Server's `BEGIN TRY`, not `COMMIT PREPARED`."""


def event_of(statement: object) -> str | None:
    """Name what a command does: `begin`, `commit`, `rollback`, `savepoint` ...; None for a query."""
    if isinstance(statement, bytes):
        statement = statement[: LONGEST + 1].decode("latin-1")
    if not isinstance(statement, str) or (statement[:3].upper() not in _STARTS and not statement[:1].isspace()):
        return None  # nearly every query ends here
    found = None if len(statement) > LONGEST else _COMMAND.fullmatch(statement)
    return None if found is None else found.lastgroup
