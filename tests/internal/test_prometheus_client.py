"""Holds that the private names of prometheus_client are where we expect them, and what happens where they are not."""

from __future__ import annotations

from typing import Any

import prometheus_client.values
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from fastapi_observe.internal import prometheus_client as names


def test_this_version_has_every_name() -> None:
    """On the lowest and the newest supported version, values can be replaced."""
    assert names.can_replace_values()
    assert not names.uses_multiprocess_directory()


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (MetricWrapperBase, "_is_observable", lambda _: False),  # no value is made
        (prometheus_client.values, "ValueClass", object),
        (Histogram, "_type", "distribution"),
        (CollectorRegistry, "register", lambda *_: None),
    ],
)
def test_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, replacement: Any) -> None:
    """A version that keeps its values elsewhere is reported as unsupported; nothing raises."""
    monkeypatch.setattr(owner, name, replacement)
    assert not names.can_replace_values.__wrapped__()


def test_a_registry_without_the_names_is_read_as_a_whole() -> None:
    """A registry of another kind is its own only collector, and finds no name."""
    registry: Any = type("Registry", (), {"collect": list})()
    assert names.list_collectors(registry) == [registry]
    assert names.find_collector(registry, "x") is None


def test_functions_of_gauges_are_called() -> None:
    """A function sets the value; one that raises leaves it as it was."""
    gauge = Gauge("g", "G.", ("kind",), registry=None)
    gauge.labels("right").set_function(lambda: 7)
    gauge.labels("wrong").set_function(lambda: 1 / 0)
    gauge.labels("plain").set(3)
    names.update_from_functions(gauge)
    values = {
        names.label_pairs(child)[0][1]: [names.read_without_lock(slot.container[slot.key])]
        for child in names.metric_children(gauge)
        for slot in names.value_slots(child)
    }
    assert values == {"right": [7], "wrong": [0], "plain": [3]}
    assert names.read_without_lock(object()) == 0


def test_the_value_class_can_be_replaced() -> None:
    """Every value that is made meanwhile comes from the replacement."""
    before, made = names.get_value_class(), []

    def make(*args: Any, **options: Any) -> Any:
        made.append(args[2])
        return before(*args, **options)

    names.set_value_class(make)
    try:
        counter = Counter("jobs_total", "Jobs.", registry=None)
    finally:
        names.set_value_class(before)
    assert made == ["jobs_total"]
    assert names.metric_header(counter) == ("counter", "jobs", "Jobs.", "", "")
