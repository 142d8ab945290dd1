"""The command `cost`: its estimate of a running app, and the savings that it suggests."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI
from monitored import free_port
from servers import serving

from fastapi_observe.cli.main import main
from fastapi_observe.cli.scrape import parse_families
from fastapi_observe.slo.cost import Prices, ScrapeTotals, as_text, estimate_cost

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from conftest import Seen


def shop() -> FastAPI:
    """Make an app with a few routes."""
    app = FastAPI()
    for name in ("orders", "products", "customers"):
        app.get(f"/{name}/{{{name}_id}}")(lambda: None)
    return app


def run_cost(app: FastAPI, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, dict[str, Any]]:
    """Run `cost --json` against an app; return its scrape and the estimate."""
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        for name in ("orders", "products", "customers", "orders"):
            httpx.get(f"{url}/{name}/7", trust_env=False, timeout=60)
        scrape = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
        capsys.readouterr()
        assert main(["cost", f"{url}/metrics", "--json", *options]) == 0
        printed = capsys.readouterr().out
    return scrape, json.loads(printed[printed.index("{\n") : printed.rindex("\n}") + 2])


def samples(scrape: str) -> list[str]:
    """Return the sample lines of a scrape."""
    return [line for line in scrape.splitlines() if line and not line.startswith("#")]


def test_the_estimate_counts_stored_samples(observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """Series, samples per day and bytes are those of the scrape; metrics and routes add up to the total."""
    app = shop()
    observed(app, include_default_registry=False)
    scrape, found = run_cost(app, capsys, "--scrape-interval", "30s")
    assert found["series"] == len(samples(scrape))
    assert found["samples_per_day"] == found["series"] * 2880
    assert abs(found["scrape_bytes"] - len(scrape.encode())) < 200  # numbers move on
    assert sum(each["series"] for each in found["metrics"]) == found["series"]
    assert found["metrics"][0]["name"] == "http_request_duration_seconds"
    routes = {each["name"]: each["series"] for each in found["routes"]}
    assert routes["/orders/{orders_id}"] == sum('endpoint="/orders/{orders_id}"' in each for each in samples(scrape))
    assert found["price_per_month"] == {"samples": None, "lines": None, "spans": None}


def test_prices(observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """A million samples, log lines and spans have separate prices; a month has thirty days."""
    app = shop()
    observed(app)
    prices = [f"--price-per-million-{what}={price}" for what, price in (("samples", 0.5), ("lines", 1), ("spans", 2))]
    _, found = run_cost(app, capsys, *prices)
    assert found["price_per_month"]["samples"] == round(found["series"] * 5760 * 30 / 1e6 * 0.5, 2)
    assert found["price_per_month"]["lines"] > 0
    assert found["price_per_month"]["spans"] == 0


def test_switching_off_saves_as_much_as_estimated(
    observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    """`size_histograms=False` saves exactly the number of series in the estimate."""
    series = {}
    for sizes in (True, False):
        app = shop()
        observed(app, size_histograms=sizes, include_default_registry=False)
        _, found = run_cost(app, capsys)
        series[sizes] = (found["series"], {each["what"]: each.get("series") for each in found["savings"]})
    promised = series[True][1]["size_histograms=False"]
    assert series[True][0] - series[False][0] == promised
    assert promised == 3 * 2 * 11
    assert "size_histograms=False" not in series[False][1]


SHOWN = """\
# TYPE http_requests_total counter
http_requests_total{method="GET",endpoint="/a",status_code="200"} 1000
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{method="GET",endpoint="/a",le="0.1"} 900
http_request_duration_seconds_bucket{method="GET",endpoint="/a",le="+Inf"} 1000
http_request_duration_seconds_count{method="GET",endpoint="/a"} 1000
http_request_duration_seconds_sum{method="GET",endpoint="/a"} 50
# TYPE process_start_time_seconds gauge
process_start_time_seconds{pid="2"} 2000
process_start_time_seconds{pid="1"} 1000
# TYPE fastapi_observe_exported_total counter
fastapi_observe_exported_total{signal="logs"} 1500
fastapi_observe_exported_total{signal="traces"} 300
"""


def totals(text: str) -> ScrapeTotals:
    """Read a scrape."""
    made = ScrapeTotals()
    for family in parse_families("here", made.count_bytes(text.splitlines())):
        made.add(family)
    return made


def test_lines_and_spans_of_a_day() -> None:
    """Items exported since the oldest process started are extrapolated to a day."""
    found = estimate_cost(totals(SHOWN), 15, Prices(1, 1, 1), bytes_per_line=500, now=1000 + 8640)
    assert found["running_for_seconds"] == 8640
    assert found["log_lines_per_day"] == 15_000
    assert found["log_bytes_per_day_estimated"] == 7_500_000
    assert found["spans_per_day"] == 3000
    assert found["requests_per_day"] == 10_000
    assert found["price_per_month"] == {"samples": 1.56, "lines": 0.45, "spans": 0.09}
    savings = {each["what"]: each for each in found["savings"]}
    assert savings["log_requests=False"]["lines_per_day"] == 10_000
    assert savings["half the sample_ratio"]["spans_per_day"] == 1500
    text = as_text(found)
    assert "9 series, 51,840 samples per day at a scrape interval of 15 s" in text
    assert "15,000 log lines per day, about 7.5 MB; 3,000 spans per day (from the 8,640 s since the start)" in text
    assert "Per month: 1.56 for samples, 0.45 for lines, 0.09 for spans" in text
    assert re.search(r"^http_request_duration_seconds +4 +44.4% +23,040 +0.69$", text, re.MULTILINE)
    assert "log_requests=False saves about 10,000 lines per day" in text
    assert "half the sample_ratio saves about 1,500 spans per day" in text


def test_rates_are_unknown_without_a_start_time() -> None:
    """Where the scrape has no process start time (not on Linux), rates are unknown rather than zero."""
    found = estimate_cost(totals("# TYPE up gauge\nup 1\n"), 15, Prices(), bytes_per_line=500)
    assert found["log_lines_per_day"] is found["spans_per_day"] is None
    assert "unknown" in as_text(found)
    assert "No savings found" in as_text(found)


def test_values_that_are_not_finite_are_not_summed() -> None:
    """A NaN or infinite value counts as a series and is left out of sums."""
    odd = 'process_start_time_seconds NaN\nhttp_requests_total NaN\nhttp_requests_total{endpoint="/a"} +Inf\n'
    found = estimate_cost(totals(odd), 15, Prices(), bytes_per_line=500)
    assert (found["series"], found["requests_per_day"]) == (3, None)


def test_health_checks_are_found() -> None:
    """A route for health checks is suggested for `exclude_paths`."""
    found = estimate_cost(totals(SHOWN.replace('"/a"', '"/api/healthz"')), 15, Prices(), bytes_per_line=500)
    savings = {each["what"]: each["series"] for each in found["savings"] if "series" in each}
    assert savings["exclude_paths=['/api/healthz']"] == 5
    assert not [
        each
        for each in estimate_cost(totals(SHOWN), 15, Prices(), bytes_per_line=1)["savings"]
        if "exclude" in each["what"]
    ]


def test_a_young_process_has_run_a_second() -> None:
    """A start time in the future, by a clock that is behind, gives no negative rates."""
    assert estimate_cost(totals(SHOWN), 15, Prices(), bytes_per_line=1, now=0)["running_for_seconds"] == 1


def test_the_largest_are_shown() -> None:
    """Fifteen metrics are listed one by one, the rest together; sizes have units."""
    text = "".join(f'# TYPE m{at} gauge\nm{at}{{endpoint="/{at}"}} 1\n' for at in range(40))
    shown = as_text(estimate_cost(totals(text), 0.001, Prices(), bytes_per_line=500))
    assert shown.count("and 25 more with 25 series") == 2
    assert re.search(r"bytes per scrape before compression, \d+\.\d GB per day", shown)
    assert "TB per day" in as_text(estimate_cost(totals(text), 0.00001, Prices(), bytes_per_line=500))


def test_text(observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """The text lists metrics and routes with their share."""
    app = shop()
    observed(app)
    with serving(app) as port:
        httpx.get(f"http://127.0.0.1:{port}/orders/7", trust_env=False, timeout=60)
        assert main(["cost", f"http://127.0.0.1:{port}/metrics"]) == 0
    printed = capsys.readouterr().out
    assert "bytes per scrape before compression" in printed
    assert re.search(r"^/orders/\{orders_id\} +\d+ +\d+\.\d% +[\d,]+$", printed, re.MULTILINE)
    assert "size_histograms=False saves 22 series" in printed
    assert "include_default_registry=False saves" in printed


def test_errors_of_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, an invalid interval and a page without metrics: one message and status 2."""
    assert main(["cost", f"http://127.0.0.1:{free_port()}/metrics"]) == 2
    assert "start the server, or correct host and port" in capsys.readouterr().err
    assert main(["cost", "http://127.0.0.1/metrics", "--scrape-interval", "often"]) == 2
    assert "often" in capsys.readouterr().err
    monkeypatch.setattr("fastapi_observe.cli.cost.read_lines", lambda *_, **__: iter(["# nothing", ""]))
    assert main(["cost", "http://127.0.0.1/metrics"]) == 2
    assert "there are no metrics; use the URL of the metrics" in capsys.readouterr().err
