"""docs/explanation/survival.md states nothing that no test holds, and the docs name only options that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import test_chaos
from servers_of_workers import SERVERS
from survival import HELD_BY

from fastapi_observe.export.setup import queue_limits
from fastapi_observe.logs import line as line_format
from fastapi_observe.logs import writer
from fastapi_observe.metrics import budget, exposition
from fastapi_observe.metrics.shared import scrape_time
from fastapi_observe.settings.model import ObserveSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/explanation/survival.md").read_text("utf-8")
TABLE = TEXT.partition("<!-- what survives what -->\n")[2].partition("<!-- /what survives what -->")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines()]
TESTS = sorted({test for cells in HELD_BY.values() for tests in cells.values() for test in tests})


def test_a_test_holds_every_cell() -> None:
    """The table has the events of `HELD_BY` in its order, and no empty cell."""
    header, line, *rows = ROWS
    signals = ["metrics", "logs", "spans"]
    assert header == ["event", *signals]
    assert set("".join(line)) == {"-", "|"}
    assert [row[0] for row in rows] == [*HELD_BY]
    assert all(len(row) == 4 and all(row) for row in rows)
    assert all([*cells] == signals and all(cells.values()) for cells in HELD_BY.values())


@pytest.mark.parametrize("test", TESTS)
def test_every_named_test_exists(test: str) -> None:
    """Under the name, in the file."""
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_options_and_metrics_that_are_named_exist() -> None:
    """Each `OBSERVE_*` variable and each metric of this package, on any page; former names aside."""
    text = "".join(page.read_text("utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    text = re.sub(r"<!-- renames -->.*<!-- /renames -->", "", text, flags=re.DOTALL)
    fields = {f"OBSERVE_{name.upper()}" for name in ObserveSettings.model_fields} | {"OBSERVE_FORKS", "OBSERVE_ENV"}
    assert set(re.findall(r"OBSERVE_[A-Z_]+", text)) <= fields
    described = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    for name in set(re.findall(r"\bfastapi_observe_\w+", text)):
        assert name in described or name.removesuffix("_total") in described, name


def test_bounds_are_those_of_the_code() -> None:
    """Numbers that the page gives: change one, and change it there."""
    defaults = ObserveSettings()
    assert (defaults.queue_size, queue_limits(defaults).bytes, defaults.batch_size) == (4096, 8 * 1024 * 1024, 256)
    assert (defaults.shutdown_timeout, defaults.batch_delay, defaults.max_series_per_metric) == (2.0, 1.0, 2000)
    assert (writer.MAX_QUEUED_LINES, writer.BATCH_DELAY, writer.MAX_BLOCK) == (10_000, 0.025, 0.05)
    assert (line_format.MAX_LINE, exposition.MAX_SCRAPE_BYTES) == (16 * 1024, 16 * 1024 * 1024)
    assert budget.SERIES_PER_PROCESS == 20_000
    assert defaults.log_rotation == "100 MB"
    assert "1 GB" in str(defaults.log_retention)
    assert "fastapi_observe_metrics_degraded".endswith(scrape_time.SUFFIXES_MERGED_BY_MAX)


def test_numbers_of_runs_are_those_of_the_tests() -> None:
    """How much of a matrix is run, and when."""
    whole = len(SERVERS) * len(test_chaos.MODES) * len(test_chaos.ENDS)
    assert f"holds {len(test_chaos.FEW)} combinations of server, Collector and end, and `make soak` all {whole}" in TEXT
