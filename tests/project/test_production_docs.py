"""docs/how-to/production.md promises nothing that no test holds, and names only options that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import test_chaos
import yaml
from servers_of_workers import SERVERS

from fastapi_observe.cli.main import main
from fastapi_observe.logs import line as line_format
from fastapi_observe.logs import writer
from fastapi_observe.metrics import budget, exposition
from fastapi_observe.metrics.shared import scrape_time
from fastapi_observe.settings.model import ObserveSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/how-to/production.md").read_text("utf-8")
TABLE = TEXT.partition("<!-- what survives what -->\n")[2].partition("<!-- /what survives what -->")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines()]
CITED = re.compile(r"`(tests/[\w/]*test_\w+\.py)::(test_\w+)`")
VARIABLES = [block for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if "=" in block]


def names_in(path: str) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_cell_cites_a_test() -> None:
    """A promise and who holds it, in each cell; each citation is in the table."""
    header, line, *rows = ROWS
    assert header == ["event", "metrics", "logs", "spans"]
    assert set("".join(line)) == {"-", "|"}
    assert len(rows) >= 12
    for event, *cells in rows:
        assert event
        assert len(cells) == 3, event
        for cell in cells:
            assert CITED.search(cell), f"{event}: no test holds {cell!r}"
            assert not cell.startswith("`"), f"{event}: nothing is promised"


@pytest.mark.parametrize(("path", "name"), sorted(set(CITED.findall(TEXT))))
def test_every_cited_test_exists(path: str, name: str) -> None:
    """Under the name, in the file."""
    assert name in names_in(path)


def test_nothing_looks_cited_that_is_not() -> None:
    """What is written like a citation is read as one."""
    assert len(re.findall(r"tests/[\w/]*test_", TEXT)) == len(CITED.findall(TEXT))


@pytest.mark.parametrize("block", VARIABLES)
def test_variables_are_accepted(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each variable of an example sets an option, as `python -m fastapi_observe settings` shows."""
    given = dict(word.split("=", 1) for word in shlex.split(block, comments=True))
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    assert set(given) <= set(ObserveSettings().sources().values())
    assert main(["settings"]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in given)


def test_blocks_of_yaml_are_read() -> None:
    """They are YAML."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert [list(yaml.safe_load(block)) for block in blocks] == [["env"], ["scrape_configs"]]


def test_options_and_metrics_that_are_named_exist() -> None:
    """Each `OBSERVE_*` variable and each metric of ours."""
    fields = {f"OBSERVE_{name.upper()}" for name in ObserveSettings.model_fields} | {"OBSERVE_FORKS"}
    assert set(re.findall(r"OBSERVE_[A-Z_]+", TEXT)) <= fields
    described = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    for name in set(re.findall(r"\bfastapi_observe_\w+", TEXT)):
        assert name in described or name.removesuffix("_total") in described, name


def test_bounds_are_those_of_the_code() -> None:
    """Numbers that the page gives: change one, and change it there."""
    defaults = ObserveSettings()
    assert (defaults.queue_size, defaults.queue_bytes, defaults.batch_size) == (4096, 8 * 1024 * 1024, 256)
    assert (defaults.shutdown_timeout, defaults.batch_delay, defaults.max_series_per_metric) == (2.0, 1.0, 2000)
    assert (writer.QUEUE_LINES, writer.BATCH_DELAY, writer.MAX_BLOCK) == (10_000, 0.025, 0.05)
    assert (line_format.MAX_LINE, exposition.MAX_RESPONSE_BYTES) == (16 * 1024, 16 * 1024 * 1024)
    assert budget.SERIES_PER_PROCESS == 20_000
    assert defaults.log_rotation == "100 MB"
    assert "1 GB" in str(defaults.log_retention)
    assert "fastapi_observe_metrics_degraded".endswith(scrape_time.SUFFIXES_MERGED_BY_MAX)


def test_numbers_of_runs_are_those_of_the_tests() -> None:
    """How much of a matrix is run, and when."""
    whole = len(SERVERS) * len(test_chaos.MODES) * len(test_chaos.ENDS)
    assert f"holds {len(test_chaos.FEW)} combinations of server, collector and end, and all {whole} there" in TEXT
