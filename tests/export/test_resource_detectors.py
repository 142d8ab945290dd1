"""The resource of spans: detectors that the environment names, and the container without configuration."""

from __future__ import annotations

import os
import platform
import socket
import sys
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.resource.detector.containerid import ContainerResourceDetector
from opentelemetry.sdk.resources import Resource, ResourceDetector

from fastapi_observe.export.setup import make_resource
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

DETECTORS = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"


class Found(ResourceDetector):
    """A detector that finds a container, and a service of another name."""

    def detect(self) -> Resource:
        """Return what was found."""
        return Resource({"container.id": "c" * 64, "service.name": "another"})


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenTelemetry's detector find a container, on any machine."""
    module = ModuleType("containerid")
    module.ContainerResourceDetector = Found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.resource.detector.containerid", module)


def test_named_detectors_describe_the_spans(monkeypatch: pytest.MonkeyPatch, observed: Callable[..., Seen]) -> None:
    """Detectors of the SDK and of installed packages apply to server spans, and settings win over them."""
    monkeypatch.setenv(DETECTORS, "host, os ,process")
    seen = observed(app := FastAPI(), service_name="shop")
    TestClient(app).get("/nowhere")
    attributes = seen.server_spans[0].resource.attributes
    assert attributes["host.name"] == socket.gethostname()
    assert attributes["os.type"] == platform.system().lower()
    assert attributes["process.pid"] == os.getpid()
    assert attributes["service.name"] == "shop"


def test_the_real_container_detector_is_used() -> None:
    """The id is what OpenTelemetry's own detector finds on this machine, if anything."""
    found = ContainerResourceDetector().detect().attributes.get("container.id")
    assert make_resource(ObserveSettings()).attributes.get("container.id") == found


@pytest.mark.usefixtures("container")
def test_the_container_needs_no_configuration() -> None:
    """With the detector installed, the id of the container is an attribute; nothing else that it says replaces ours."""
    attributes = make_resource(ObserveSettings(service_name="shop")).attributes
    assert attributes["container.id"] == "c" * 64
    assert attributes["service.name"] == "shop"


@pytest.mark.usefixtures("container")
def test_the_variable_decides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If detectors are named, only those run; attributes of `OTEL_RESOURCE_ATTRIBUTES` win over every detector."""
    monkeypatch.setenv(DETECTORS, "os")
    assert "container.id" not in make_resource(ObserveSettings()).attributes
    monkeypatch.setenv(DETECTORS, "")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "container.id=mine,k8s.pod.name=shop-7")
    attributes = make_resource(ObserveSettings()).attributes
    assert (attributes["container.id"], attributes["k8s.pod.name"]) == ("mine", "shop-7")


def test_without_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package there is no container id, and no error."""
    monkeypatch.setitem(sys.modules, "opentelemetry.resource.detector.containerid", None)
    assert "container.id" not in make_resource(ObserveSettings()).attributes


def test_detectors_that_do_not_work(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A name that no package has is logged by the SDK; the others and our own attributes stay."""
    monkeypatch.setenv(DETECTORS, "nothing,os")
    attributes = make_resource(ObserveSettings(service_name="shop")).attributes
    assert attributes["service.name"] == "shop"
    assert attributes["os.type"] == platform.system().lower()
    assert "nothing" in caplog.text


def test_a_container_detector_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without the class, and a detector that raises, give no id and no error."""
    name = "opentelemetry.resource.detector.containerid"
    monkeypatch.setitem(sys.modules, name, ModuleType("containerid"))
    assert "container.id" not in make_resource(ObserveSettings()).attributes

    class Broken(ResourceDetector):
        def detect(self) -> NoReturn:
            raise RuntimeError("cgroup")

    broken = ModuleType("containerid")
    broken.ContainerResourceDetector = Broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, broken)
    assert make_resource(ObserveSettings(service_name="shop")).attributes["service.name"] == "shop"
