"""`install_worker`: a process without an app has the same logs, traces and metrics, and loses none at its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
from collectors import Collector
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from sqlalchemy import create_engine

from fastapi_observe import SettingsError, get_observability, install_worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

SCRIPT = """
import urllib.request

from fastapi_observe import install_worker

observe = install_worker(
    service_name="mailer", sample_ratio=1.0, otlp_endpoint={url!r}, otlp_metrics=True, otlp_logs=True, metrics_port=0
)

@observe.job("nightly")
def nightly():
    observe.set(tenant="acme")

with observe.job("send mail", headers={{"traceparent": {parent!r}}}), observe.operation("render"):
    observe.log.info("inside")
nightly()
url = f"http://127.0.0.1:{{observe.metrics_server.port}}/metrics"
print(urllib.request.urlopen(url).read().decode())
"""

ASYNC_SCRIPT = """
import asyncio

from fastapi_observe import install_worker

observe = install_worker(sample_ratio=1.0, otlp_endpoint={url!r}, otlp_metrics=True)

async def main():
    async with observe.job("consume"):
        await asyncio.sleep(0.6)

asyncio.run(main())
text = observe.metrics.render("", "")[1].decode()
print([line for line in text.splitlines() if line.startswith("asyncio_event_loop_lag_seconds_count")])
"""

FORK_SCRIPT = """
import os
import warnings

from fastapi_observe import install_worker

observe = install_worker(sample_ratio=1.0, otlp_endpoint={url!r}, otlp_metrics=True)
# Python 3.12 and newer warn in the parent of each fork beside threads, of which the exporter has one.
warnings.filterwarnings("ignore", r"This process \\(pid=\\d+\\) is multi-threaded", DeprecationWarning, "__main__")
if os.fork() == 0:
    with observe.job("in the child"):
        pass
else:
    os.wait()
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Listen for what a script exports."""
    with Collector() as one:
        yield one


def run(script: str, collector: Collector) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    code = script.format(url=collector.url, parent=PARENT)
    done = interpreter.run(code)
    assert done.returncode == 0, done.stderr
    return done


def exported_jobs(collector: Collector) -> dict[str, float]:
    """Return the last value of `jobs_total` of each job that was exported."""
    found: dict[str, float] = {}
    for path, body in zip(collector.paths, collector.bodies, strict=True):
        if path.endswith("/v1/metrics"):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
                    for point in metric.sum.data_points if metric.name == "jobs" else ():
                        labels = {pair.key: pair.value.string_value for pair in point.attributes}
                        found[labels["job"]] = point.as_double
    return found


def test_a_script(collector: Collector) -> None:
    """Lines on standard output, `/metrics` while it runs, and all three signals at the collector when it has ended."""
    ended = run(SCRIPT, collector)
    assert ended.stderr == ""
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    jobs = {line["fields"]["job"]: line for line in lines if line["logger"] == "fastapi_observe.job"}
    assert {name: line["fields"].get("tenant") for name, line in jobs.items()} == {"send mail": None, "nightly": "acme"}
    assert {line["service"] for line in lines} == {"mailer"}
    assert jobs["send mail"]["trace_id"] == PARENT[3:35]
    assert [line["trace_id"] for line in lines if line["message"] == "inside"] == [PARENT[3:35]]
    assert 'jobs_total{job="send mail",outcome="ok"} 1' in ended.stdout
    assert dict(collector.names) == {"send mail": 1, "render": 1, "nightly": 1}
    assert exported_jobs(collector) == {"send mail": 1, "nightly": 1}
    assert any(path.endswith("/v1/logs") for path in collector.paths)


def test_an_event_loop_that_starts_later(collector: Collector) -> None:
    """The lag of the loop is measured from its first job on."""
    ended = run(ASYNC_SCRIPT, collector)
    assert ended.stderr == ""
    assert "asyncio_event_loop_lag_seconds_count" in ended.stdout
    assert dict(collector.names) == {"consume": 1}
    assert exported_jobs(collector) == {"consume": 1}


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_a_forked_child(collector: Collector) -> None:
    """A process that a worker forks exports its own jobs."""
    ended = run(FORK_SCRIPT, collector)
    assert ended.stderr == ""
    assert dict(collector.names) == {"in the child": 1}
    assert exported_jobs(collector) == {"in the child": 1}


def test_close_uninstalls() -> None:
    """It is the only install of the process until then; an engine is instrumented, a wrong one leaves nothing."""
    engine = create_engine("sqlite://")
    observe = install_worker(engines=[engine], metrics_port=0)
    assert get_observability() is observe
    assert observe.metrics_server.port is not None
    observe.close()
    with pytest.raises(RuntimeError, match="not installed"):
        get_observability()
    wrong: Any = object()
    with pytest.raises(SettingsError, match="engines"):
        install_worker(engines=[wrong])
    with pytest.raises(SettingsError, match="sample_ratio"):
        install_worker(sample_ratio=3)
    with pytest.raises(RuntimeError, match="not installed"):
        get_observability()
