"""Arguments and output of all commands: `--json`, numbers, lists of names, exit statuses, tables, text, errors."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    # argparse has no public name for the result of add_subparsers.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

EXIT_PROBLEM: Final = 1
"""Exit status if the command found a difference or a problem."""

EXIT_ERROR: Final = 2
"""Exit status if the command could not run, as argparse uses it for invalid arguments."""


class InputError(Exception):
    """Raised if standard input cannot be read. `main` prints the message."""


def add_json_argument(parser: argparse._ActionsContainer) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def parse_number(kind: str, low: float) -> Callable[[str], float]:
    """Return a parser of a finite number of at least `low`, called `kind` in the error of an invalid one."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number < float("inf"):
            raise argparse.ArgumentTypeError(f"invalid {kind} {text!r}; use a number of at least {low:g}")
        return number

    return parse


def parse_names(kind: str, choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of names that are separated by commas, called `kind` in the error of an unknown one."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        unknown = next((name for name in names if name not in choices), None)
        if unknown is not None:
            raise argparse.ArgumentTypeError(f"invalid {kind} {unknown!r}; choose from {', '.join(choices)}")
        return names

    return parse


def align(rows: Sequence[Sequence[str]], *, numbers: int = 0) -> Iterator[str]:
    """Yield each row as a line with aligned columns; the first `numbers` columns are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index < numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def printable(text: str) -> str:
    """Return text with unprintable characters escaped: none can move the cursor or start a line."""
    return "".join([each if each.isprintable() else ascii(each)[1:-1] for each in text])
