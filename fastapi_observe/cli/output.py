"""Output of all commands: exit statuses, aligned tables and printable text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    # argparse has no public name for the result of add_subparsers.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

EXIT_PROBLEM: Final = 1
"""Exit status if the command found a difference or a problem."""

EXIT_ERROR: Final = 2
"""Exit status if the command could not run, as argparse uses it for invalid arguments."""


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
