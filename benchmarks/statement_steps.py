"""A process that parses and executes SQL statements alternately: `python -m benchmarks.statement_steps <rounds>`.

The second argument is the number of calls in a round. It reports the CPU seconds of one call in each round: of our
parser, and of SQLite in memory, which selects one row by its key. `same` is one statement repeatedly, which our cache
and that of Python's `sqlite3` have; `new` has another literal each time, so both caches miss. `hostile` are texts made
to be slow to parse, of several lengths.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from itertools import count
from time import process_time
from typing import TYPE_CHECKING

from benchmarks.operation_steps import STATEMENT
from benchmarks.process import answers
from fastapi_observe.clients.database.statements import StatementCache, parse_statement

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (2_100, 8_192, 65_536)
"""Characters: just over what a span shows, all that is parsed, far beyond that."""

ROWS = 1000

HOSTILE: dict[str, str] = {
    "quotes": "'",
    "doubled quotes": "''",
    "escaped quotes": "\\'",
    "quotation marks": '"',
    "ticks": "`",
    "dollars": "$$",
    "dollar tags": "$a$b",
    "open comments": "/*",
    "comment ends": "*/",
    "minus signs": "-",
    "signs": "- +",
    "parentheses": "(",
    "pairs of parentheses": "()",
    "brackets": "[",
    "numbers": "1e1.",
    "words": "a",
    "select": "SELECT ",
    "from": "FROM (",
    "with": "WITH a AS (",
    "in lists": "IN (?,",
    "rows": "VALUES (?),",
    "commas": "?,",
    "spaces": " ",
    "unicode": "\u00e9'",
}
"""The repeated part of each text."""

SYSTEMS = ("other_sql", "postgresql", "sqlite")


def hostile(part: str, size: int) -> str:
    """Return a text of this length."""
    return ("SELECT " + part * (size // len(part) + 1))[:size]


def spend(function: Callable[[], object], calls: int) -> float:
    """Return the CPU seconds of one call."""
    before = process_time()
    for _ in range(calls):
        function()
    return (process_time() - before) / calls


def steps() -> dict[str, Callable[[], object]]:
    """Return the steps with typical statements."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, status TEXT, total REAL)")
    rows = [(number, f"customer {number}", "open", number / 2) for number in range(ROWS)]
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    statements, keys, literals = StatementCache(), count(), count()
    other = STATEMENT.replace("?", "{}")
    return {
        "same read": lambda: statements.parse_statement(STATEMENT, "sqlite"),
        "same executed": lambda: database.execute(STATEMENT, (next(keys) % ROWS,)).fetchone(),
        "uncached read": lambda: parse_statement(STATEMENT, "sqlite"),
        "new read": lambda: statements.parse_statement(other.format(next(literals)), "sqlite"),
        "new executed": lambda: database.execute(other.format(next(keys) % ROWS)).fetchone(),
    }


def main() -> None:
    """Measure and answer."""
    rounds, calls = int(sys.argv[1]), int(sys.argv[2])
    compared = steps()
    texts = {
        f"{name}, {system}": [hostile(part, size) for size in SIZES]
        for name, part in HOSTILE.items()
        for system in SYSTEMS
    }
    found: dict[str, list[float]] = {name: [] for name in compared}
    slow: dict[str, list[list[float]]] = {name: [] for name in texts}
    for number in range(rounds + 1):
        taken = {name: spend(step, calls) for name, step in compared.items()}
        read = {name: [spend(_reader(name, text), 3) for text in sizes] for name, sizes in texts.items()}
        if number:  # the first one warms up
            for name, seconds in taken.items():
                found[name].append(seconds)
            for name, each in read.items():
                slow[name].append(each)
    answers().write(json.dumps({"typical": found, "hostile": slow}) + "\n")


def _reader(name: str, text: str) -> Callable[[], object]:
    system = name.rpartition(", ")[2]
    return lambda: parse_statement(text, system)


if __name__ == "__main__":
    main()
