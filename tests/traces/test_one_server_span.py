"""Exactly one server span for each request, with any other telemetry around or inside the app."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import interpreter
import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from span_cases import CASES, FIRST

HERE = Path(__file__).parents[1]
RATIOS = (0.0, 0.2, 1.0) if {"OBSERVE_ALL_FAULTS", "OBSERVE_SOAK"} & {*os.environ} else (0.2,)
"""Sample ratios: with 0.2 some requests of each case are sampled and some are not. CI and the soak try all."""
WITH_SPANS_OF_THEIR_OWN = {
    "native_ridden",
    "mounted_ridden",
    "contrib_outside",
    "called_inside_a_span",
    "described_by_contrib_inside_contrib",
}
"""Cases with INTERNAL spans of FastAPI, which `server_span="fastapi"` keeps, or of code around the app."""
MODES = [("user", case.__name__) for case in CASES] + [(mode, case.__name__) for mode, case in FIRST.items()]


@functools.cache
def results(mode: str, ratio: float) -> dict[str, Any]:
    """Run the cases of a mode in a process of its own, once for all tests."""
    script = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    done = interpreter.run(
        script, Path(__file__).with_name("span_cases.py"), mode, ratio, directory=HERE.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("mode", "case"), MODES)
def test_one_server_span(mode: str, case: str, ratio: float) -> None:
    """Each sampled request has one server span, named after its route, and each request one line and one count.

    Instrumentation inside the app adds no span, and an exception is recorded once.

    Which requests are sampled is the sampler's decision about their trace ids, made once for each request.
    """
    found = results(mode, ratio)[case]
    if found is None:
        pytest.skip("starlette.middleware.opentelemetry came with Starlette 1.10")
    sampler = TraceIdRatioBased(ratio)
    sampled = {
        trace_id
        for trace_id in found["lines"]
        if sampler.should_sample(None, int(trace_id, 16), "").decision is Decision.RECORD_AND_SAMPLE
    }
    assert len(found["lines"]) == len(set(found["lines"])) == found["requests"]
    assert found["counted"] == found["requests"]
    assert sorted(found["server"]) == sorted(sampled)
    template = "/sub/items/{item_id}" if "mounted" in case or case == "installed_twice" else "/items/{item_id}"
    assert found["endpoints"] == [template]
    if sampled:
        path = template.replace("{item_id}", "1")
        assert found["names"] == [f"GET {path if 'described_by_contrib' in case else template}"]
    assert found["faults"] == []
    if case not in WITH_SPANS_OF_THEIR_OWN:
        assert found["inside"] == []
    assert found["exceptions"] == (len(sampled) if case == "instrumented_failing" else 0)
