"""The handler for AWS Lambda in docs/how-to/lambda.md exports everything before it returns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from lambda_adapter import provide_mangum

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTED = (Path(__file__).parents[2] / "docs/how-to/lambda.md").read_text("utf-8")
EVENT = {
    "version": "2.0",
    "routeKey": "$default",
    "rawPath": "/orders/7",
    "rawQueryString": "",
    "headers": {"host": "api.example"},
    "requestContext": {
        "http": {"method": "GET", "path": "/orders/7", "protocol": "HTTP/1.1", "sourceIp": "1.2.3.4"},
        "stage": "$default",
        "requestId": "r",
    },
    "isBase64Encoded": False,
}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector for spans, lines and metrics of the example."""
    with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setenv("OBSERVE_OTLP_LOGS", "true")
        monkeypatch.setenv("OBSERVE_OTLP_METRICS", "true")
        monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "1")
        yield made


def test_everything_is_exported_when_the_handler_returns(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each event: spans, lines on standard output and over OTLP, and metrics. A frozen process runs no thread."""
    provide_mangum(monkeypatch)
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENTED, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "function"}
    exec(compile(code, "function.py", "exec"), names)  # noqa: S102 - our own page
    try:
        for number in (1, 2):
            response = names["handler"](EVENT, None)
            assert response["statusCode"] == 200
            assert [span.name for span in collector.spans] == ["GET /orders/{order_id}"] * number
            assert collector.paths[3 * (number - 1) :] == ["/v1/traces", "/v1/logs", "/v1/metrics"]
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [line["message"] for line in lines if line["logger"] == "fastapi_observe.request"] == [
                "HTTP request completed"
            ]
        collector.mode = "hang"
        assert names["handler"](EVENT, None)["statusCode"] == 200
    finally:
        names["observe"].close()
