"""Holds how metrics are found or created by name, and what the business metrics count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.model import ObserveSettings


def _metrics(**settings: Any) -> MetricsService:
    return MetricsService(ObserveSettings(include_default_registry=False, **settings), InternalErrors())


def test_the_same_request_returns_the_same_metric() -> None:
    """A second call with the same type, labels and buckets returns the first metric; `_total` may be left out."""
    metrics = _metrics()
    counter = metrics.counter("carts_total", "Carts.", ("shop",))
    assert metrics.counter("carts_total", "Carts.", ["shop"]) is counter
    assert metrics.counter("carts", "Carts.", ["shop"]) is counter
    assert metrics.counter("carts", "Carts.", ["shop"]) is counter
    histogram = metrics.histogram("cart_value", "Value.", buckets=(1, 10))
    assert metrics.histogram("cart_value", "Value.") is histogram
    assert metrics.histogram("cart_value", "Value.", buckets=[1.0, 10.0, float("inf")]) is histogram
    gauge = metrics.gauge("queue_length", "")
    assert metrics.gauge("queue_length", "other words") is gauge


@pytest.mark.parametrize(
    ("kind", "labels", "options", "words"),
    [
        ("counter", ("region",), {}, [r"histogram with labels \('shop',\)", r"counter with labels \('region',\)"]),
        ("histogram", ("region",), {}, [r"\('shop',\)", r"\('region',\)"]),
        ("histogram", ("shop",), {"buckets": (2, 3)}, [r"buckets \[1.0, inf\]", r"buckets \[2.0, 3.0, inf\]"]),
        ("gauge", ("shop",), {}, ["histogram with", "gauge with"]),
    ],
)
def test_another_type_or_other_labels_raise_an_error(
    kind: str, labels: tuple[str, ...], options: dict[str, Any], words: list[str]
) -> None:
    """With another type, other labels or buckets, the error names both what exists and what was requested."""
    metrics = _metrics()
    metrics.histogram("cart_value", "Value.", ("shop",), buckets=(1,))
    with pytest.raises(ValueError, match=f"{words[0]}.*{words[1]}"):
        getattr(metrics, kind)("cart_value", "Value.", labels, **options)


@pytest.mark.parametrize("name", ["", "9lives", "cart-value", "cart value", "job:rate", "größe", "x\n"])
def test_an_invalid_name_raises_an_error(name: str) -> None:
    """Names have letters, digits and underscores only; colons are for recording rules."""
    with pytest.raises(ValueError, match="use letters, digits"):
        _metrics().counter(name, "Something.")


@pytest.mark.parametrize(
    "name", ["http_requests_total", "http_requests", "orders_created_total", "fastapi_observe_x", "db_queries"]
)
def test_names_of_the_library_raise_an_error(name: str) -> None:
    """The library's own names are reserved, used or not; the error suggests another."""
    with pytest.raises(ValueError, match=f"for example myapp_{name}"):
        _metrics().counter(name, "Something.")


def test_names_of_another_collector_raise_an_error() -> None:
    """A name that the registry has, or that samples of a histogram have, cannot be registered again."""
    registry = CollectorRegistry()
    Gauge("temperature", "Of the room.", registry=registry)
    metrics = _metrics(registry=registry)
    with pytest.raises(ValueError, match="choose another name"):
        metrics.gauge("temperature", "Of the room.")
    metrics.histogram("wait", "Wait.")
    with pytest.raises(ValueError, match="choose another name"):
        metrics.gauge("wait_count", "Waits.")


def test_only_counters_end_in_total() -> None:
    """A gauge or histogram named `..._total` would be taken for a counter."""
    with pytest.raises(ValueError, match="use a counter"):
        _metrics().gauge("carts_total", "Carts.")


@pytest.mark.parametrize("labels", [("a-b",), ("__own",), ("",), (7,), ("shop", "shop"), "shop"])
def test_invalid_labels_raise_an_error(labels: Any) -> None:
    """Label names follow Prometheus' rules and are unique, and a string is not a list of names."""
    with pytest.raises(ValueError, match="label"):
        _metrics().counter("carts_total", "Carts.", labels)


def test_le_is_reserved_on_a_histogram() -> None:
    """`le` is the label of buckets; other metrics may use it."""
    metrics = _metrics()
    metrics.gauge("small", "Small.", ("le",)).labels("x").set(1)
    with pytest.raises(ValueError, match="not le on a histogram"):
        metrics.histogram("large", "Large.", ("le",))


@pytest.mark.parametrize("buckets", [(), (2, 1), (1, 1)])
def test_buckets_must_ascend(buckets: tuple[float, ...]) -> None:
    """Bounds in another order, duplicates or none at all raise an error."""
    with pytest.raises(ValueError, match="smallest first"):
        _metrics().histogram("cart_value", "Value.", buckets=buckets)


def test_concurrent_threads_create_a_metric_once() -> None:
    """Sixteen threads get the same metric, and no count is lost."""
    metrics = _metrics()

    def work(number: int) -> int:
        counter = metrics.counter("carts_total", "Carts.")
        counter.inc()
        metrics.business.order_created()
        return id(counter)

    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(work, range(200)))
    assert len(made) == 1
    assert metrics.registry.get_sample_value("carts_total") == 200
    assert metrics.registry.get_sample_value("orders_created_total") == 200


def test_business_metrics_appear_with_their_first_use() -> None:
    """Before its first use a business metric is not in the output; each call then counts one."""
    metrics = _metrics()
    names = ("user_registrations_total", "user_logins_total", "orders_created_total", "revenue_generated_total")
    before = metrics.render("", "")[1].decode()
    assert not [name for name in names if name in before]
    metrics.business.user_registered()
    metrics.business.user_logged_in()
    metrics.business.order_created()
    metrics.business.order_created()
    read = metrics.registry.get_sample_value
    assert [read(name) for name in names[:3]] == [1, 1, 2]


def test_revenue_adds_up_by_currency() -> None:
    """Decimals, ints and floats add up; the currency is upper case."""
    metrics = _metrics()
    metrics.business.revenue(Decimal("19.90"), "eur")
    metrics.business.revenue(1, "EUR")
    metrics.business.revenue(0.1, "USD")
    metrics.business.revenue(0, "USD")
    read = metrics.registry.get_sample_value
    assert read("revenue_generated_total", {"currency": "EUR"}) == pytest.approx(20.9)
    assert read("revenue_generated_total", {"currency": "USD"}) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "amount",
    [
        -1,
        -0.01,
        Decimal("-0.01"),
        float("nan"),
        Decimal("NaN"),
        Decimal("sNaN"),
        float("inf"),
        Decimal("1e999"),
        10**400,
    ],
)
def test_an_invalid_amount_raises_an_error(amount: Any) -> None:
    """Negative, infinite and not-a-number amounts raise ValueError and count nothing."""
    metrics = _metrics()
    with pytest.raises(ValueError, match="invalid revenue"):
        metrics.business.revenue(amount, "EUR")
    assert metrics.registry.get_sample_value("revenue_generated_total", {"currency": "EUR"}) is None


def test_an_amount_of_another_type_raises_an_error() -> None:
    """A string is not converted to a number."""
    amount: Any = "12.50"
    with pytest.raises(TypeError, match="got str"):
        _metrics().business.revenue(amount, "EUR")


@pytest.mark.parametrize("currency", ["", "EU", "EURO", "€", "E1R", "ÄÖÜ", None, "EUR\n"])
def test_a_currency_has_three_letters(currency: Any) -> None:
    """Anything but three ASCII letters raises ValueError."""
    with pytest.raises(ValueError, match="ISO 4217"):
        _metrics().business.revenue(1, currency)
