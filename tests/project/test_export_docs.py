"""docs/reference/metrics.md lists each reason for which something is dropped or a request fails, and no other."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fastapi_observe.export import buffer
from fastapi_observe.export.counts import DURATION_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastapi_observe"
TEXT = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
TABLES = TEXT.partition("\n## Export\n")[2].partition("\n**Metrics over OTLP**")[0]
DROPPED, FAILED = (
    [[cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")] for line in part.splitlines()
     if line.startswith("| `") and not line.startswith("| `reason`")]
    for part in TABLES.split("\nReasons of `fastapi_observe_export_failures_total`")
)  # fmt: skip
OTLP = "export/*.py"
LINES = "logs/**/*.py"


def dropped_by(files: str) -> set[str]:
    """Return the words under which these modules count what they drop."""
    found = set[str]()
    for node in nodes(files):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"_drop", "_lose"} and node.args:
                found |= set().union(*map(words, node.args))
        elif isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") in {"dropped", "dropped_by_reason"}:
            found |= words(node.slice)
    return found


def failures() -> set[str]:
    """Return the words that the transports call failures by, in whole."""
    found = set[str]()
    for node in nodes(OTLP):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "ExportResult"
            and node.args
        ):
            if not isinstance(node.args[0], ast.JoinedStr):
                found |= words(node.args[0])
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            found |= {word for word in words(node.value.body) if word.startswith("http_")}
    return found


def nodes(files: str) -> Iterator[ast.AST]:
    """Yield every node of some modules."""
    for file in PACKAGE.glob(files):
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


def words(node: ast.AST) -> set[str]:
    """Return the texts that an expression may be, conditions left out."""
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_every_reason_of_a_loss_is_described() -> None:
    """Those of what goes to a collector, and those of lines; each with what it means and what to do."""
    assert all(len(row) == 4 and all(row) for row in DROPPED)
    assert {row[0] for row in DROPPED if row[1] in {"all", "OTLP"}} == set(get_args(buffer.DropReason))
    assert {row[0] for row in DROPPED if row[1] != "OTLP"} == dropped_by(LINES)
    assert len({row[0] for row in DROPPED}) == len(DROPPED)


def test_every_reason_of_a_failure_is_described() -> None:
    """By its word; a status by its first digit."""
    described = {word for row in FAILED for word in row[0].removesuffix(" and so on").split(", ")}
    assert described - {"http_1xx", "http_3xx", "http_9xx"} == failures()


def test_bounds_are_described() -> None:
    """Numbers that the page gives: change one, and change it there."""
    assert buffer.MAX_DEFERRAL == 5 * 60
    assert buffer.MAX_ATTEMPTS == 2
    assert buffer.MAX_BODY_BYTES == 4 * 1024 * 1024
    bounds = ", ".join(f"{bound:g}" for bound in DURATION_BUCKETS)
    assert f"| `fastapi_observe_export_duration_seconds` | {bounds} |" in TEXT
