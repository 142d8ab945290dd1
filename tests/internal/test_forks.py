"""Processes that multiprocessing starts: their spans and lines are flushed when they end, in each start method."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import subprocess
import sys
import weakref
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector

from fastapi_observe.internal.forks import register_at_exit

if TYPE_CHECKING:
    from collectors import Mode

ROOT = Path(__file__).parents[2]
METHODS = multiprocessing.get_all_start_methods()
POOL = """
import logging, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from fastapi import FastAPI
from loguru import logger
from fastapi_observe import install, operation

app = FastAPI()
install(
    app, sample_ratio=1.0, max_traces_per_second=None, otlp_endpoint=sys.argv[1], shutdown_timeout=float(sys.argv[4])
)


def work(number):
    with operation(f"task {number}"):
        logger.info("by loguru", number=number)
        logging.getLogger("app").warning("by logging", extra={"number": number})


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    if sys.argv[3] == "process":
        children = [context.Process(target=work, args=(number,)) for number in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        sys.exit(max(child.exitcode for child in children))
    elif sys.argv[3] == "executor":
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            list(pool.map(work, range(2)))
    else:
        with context.Pool(1, maxtasksperchild=1) as pool:
            pool.map(work, range(2), chunksize=1)
            pool.close()
            pool.join()
"""


def run_pool(
    directory: Path, kind: str, method: str, mode: Mode, shutdown_timeout: float
) -> tuple[set[str], list[str]]:
    """Run two tasks in children. Returns the names of the spans at the collector, and the lines written."""
    (directory / "pool.py").write_text(POOL)
    with Collector(mode) as collector:
        run = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "pool.py", collector.url, method, kind, str(shutdown_timeout)],
            cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        spans = {span.name for span in collector.spans} if mode == "ok" else set()
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return spans, sorted(f"{line['message']} {line['fields']['number']}" for line in lines if "by" in line["message"])


@pytest.mark.parametrize("method", METHODS)
def test_children_are_flushed_when_they_end(method: str, tmp_path: Path) -> None:
    """Processes, executors and pools with `maxtasksperchild` lose neither spans nor lines."""
    for kind in ("process", "executor", "pool"):
        spans, lines = run_pool(tmp_path, kind, method, "ok", 2.0)
        assert spans == {f"task {number}" for number in range(2)}, kind
        assert lines == [f"by {by} {number}" for by in ("logging", "loguru") for number in range(2)], kind


def test_a_collector_that_hangs_does_not_hold_up_a_child(tmp_path: Path) -> None:
    """A child ends after `shutdown_timeout`, and its lines are written."""
    _, lines = run_pool(tmp_path, "pool", METHODS[0], "hang", 0.2)
    assert len(lines) == 4


class Owner:
    """Counts its calls."""

    calls = 0

    def end(self) -> None:
        """Count a call."""
        self.calls += 1


def test_an_exit_callback_can_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child of multiprocessing it is a finalizer, which runs until it is removed, and does not keep its owner."""
    made: list[util.Finalize] = []

    class Finalize(util.Finalize):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(util, "Finalize", Finalize)
    monkeypatch.setattr(multiprocessing.process, "parent_process", object)
    owner = Owner()
    register_at_exit(owner, Owner.end)()
    assert not made[0].still_active()
    undo = register_at_exit(owner, Owner.end)
    made[1]()
    assert owner.calls == 1
    undo()
    undo = register_at_exit(owner, Owner.end)
    reference = weakref.ref(owner)
    del owner
    assert reference() is None
    made[2]()
    undo()
