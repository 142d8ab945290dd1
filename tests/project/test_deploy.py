"""`deploy/`: what of it can be checked without Docker and Kubernetes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from servers_of_workers import free_port
from tools import needs

from example_app.services import run_service
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for ending in ("yaml", "yml") for path in DEPLOY.rglob(f"*.{ending}"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text("utf-8"))
OBJECTS: list[dict[str, Any]] = [
    found for path in KUSTOMIZATION["resources"] for found in yaml.safe_load_all((DEPLOY / path).read_text("utf-8"))
]
NAME = "app.kubernetes.io/name"
IMAGE = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)?:[\w.-]+")
"""An official name and a tag, no host of a registry before it."""

CLOSED = "127.0.0.1:9"
"""An address without a listener."""


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """Return the Kubernetes objects of a kind, by name."""
    return {found["metadata"]["name"]: found for found in OBJECTS if found["kind"] == kind}


DEPLOYMENTS = of_kind("Deployment")


def template(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the pod that a deployment makes."""
    pod: dict[str, Any] = deployment["spec"]["template"]
    return pod


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the one container of a deployment."""
    (only,) = template(deployment)["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def ports(deployment: dict[str, Any]) -> dict[str, int]:
    """Return the named ports of a deployment."""
    return {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}


def selected(selector: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the deployments whose pods have the labels; an empty selector means all."""
    wanted = selector.get("matchLabels", {})
    among = {one["key"]: one["values"] for one in selector.get("matchExpressions", ())}
    return [
        found
        for found in DEPLOYMENTS.values()
        if wanted.items() <= template(found)["metadata"]["labels"].items()
        and all(template(found)["metadata"]["labels"].get(key) in values for key, values in among.items())
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_read(path: Path) -> None:
    """Each file is YAML, and no document in it is empty."""
    documents = list(yaml.safe_load_all(path.read_text("utf-8")))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


# Docker


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_hardened_and_pinned(name: str) -> None:
    """No service is root, writes to its image, has capabilities or a floating tag; ports are this machine's only."""
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service["user"].startswith("0")
    assert IMAGE.fullmatch(service["image"])
    assert not service["image"].endswith(":latest")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])


def test_what_compose_mounts_is_there() -> None:
    """Files, directories, the build context and the Dockerfile exist; what is mounted is read only."""
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source, _, mode = volume.split(":")
            assert (DEPLOY / source).exists()
            assert mode == "ro"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_dockerfile_copies_what_there_is() -> None:
    """Sources exist and are let through, the app runs as a user of its own and is process 1."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    let_through = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists()
            assert f"!{source.removeprefix('./')}" in let_through
    (image,) = re.findall(r"^FROM (.*)$", text, re.MULTILINE)
    assert IMAGE.fullmatch(image)
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
    assert json.loads(command)[0] == "uvicorn"


def test_a_stop_is_long_enough() -> None:
    """What the server waits for its requests and we for the collector is less than what the machine waits for both."""
    budget = ObserveSettings().shutdown_timeout
    waits = re.compile(r"--timeout-graceful-shutdown\W+(\d+)")
    (seconds,) = waits.findall((DEPLOY / "Dockerfile").read_text("utf-8"))
    assert int(seconds) + budget < int(COMPOSE["services"]["shop"]["stop_grace_period"].removesuffix("s"))
    (seconds,) = waits.findall(str(COMPOSE["services"]["payments"]["command"]))
    assert int(seconds) + budget < int(COMPOSE["services"]["payments"]["stop_grace_period"].removesuffix("s"))
    for name in ("shop", "payments"):
        (seconds,) = waits.findall(str(container(DEPLOYMENTS[name])["command"]))
        before = container(DEPLOYMENTS[name])["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = template(DEPLOYMENTS[name])["spec"]["terminationGracePeriodSeconds"]
        assert before + int(seconds) + budget < grace


# Kubernetes


def test_manifests_are_objects() -> None:
    """Each has a version, a kind and a name that no other of its kind has; all files of the directory are listed."""
    for found in OBJECTS:
        assert found["apiVersion"]
        assert found["kind"]
        assert re.fullmatch(r"[a-z0-9-]+", found["metadata"]["name"])
    assert len({(found["kind"], found["metadata"]["name"]) for found in OBJECTS}) == len(OBJECTS)
    listed = {*KUSTOMIZATION["resources"], "kubernetes/pod-monitor.yaml"}
    assert {f"kubernetes/{path.name}" for path in (DEPLOY / "kubernetes").glob("*.yaml")} == listed


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_selects_its_pods(name: str) -> None:
    """Labels match, images are pinned and those of compose, nothing is root or writes to its image."""
    deployment = DEPLOYMENTS[name]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template(deployment)["metadata"]["labels"].items()
    assert container(deployment)["image"] == COMPOSE["services"][name]["image"]
    pod = template(deployment)["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in container(deployment)["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    probes = [found for key, found in container(deployment).items() if key.endswith("Probe")]
    assert probes
    assert {probe["httpGet"]["port"] for probe in probes} <= set(ports(deployment))


@pytest.mark.parametrize("name", of_kind("Service"))
def test_a_service_finds_its_pods(name: str) -> None:
    """Its selector is that of one deployment, its ports are named there."""
    service = of_kind("Service")[name]
    (deployment,) = selected({"matchLabels": service["spec"]["selector"]})
    assert deployment["metadata"]["name"] == name
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports(deployment))


@pytest.mark.parametrize("name", of_kind("NetworkPolicy"))
def test_a_policy_names_pods_and_ports_that_exist(name: str) -> None:
    """Whom it protects and whom it lets in; /metrics of the apps is for Prometheus, the shop and the ingress."""
    policy = of_kind("NetworkPolicy")[name]["spec"]
    protected = selected(policy["podSelector"])
    assert protected
    for rule in policy.get("ingress", ()):
        assert all(selected(peer["podSelector"]) for peer in rule["from"] if "podSelector" in peer)
        for port in rule.get("ports", ()):
            assert all(port["port"] in ports(deployment) for deployment in protected)


def test_config_maps_are_made_of_the_files() -> None:
    """Each file exists, is mounted under the name that the program is given, and nothing else is asked for."""
    made = {one["name"]: one for one in KUSTOMIZATION["configMapGenerator"]}
    wanted = {"app-environment"}
    for deployment in DEPLOYMENTS.values():
        wanted |= {one["configMap"]["name"] for one in template(deployment)["spec"]["volumes"] if "configMap" in one}
    assert set(made) == wanted
    for one in made.values():
        for entry in (*one.get("files", ()), *one.get("envs", ())):
            assert (DEPLOY / entry.rpartition("=")[2]).is_file()
    for name, path in (("otel-collector", "config.yaml"), ("prometheus", "prometheus.yml"), ("tempo", "tempo.yaml")):
        keys = {Path(entry.partition("=")[0]).name for entry in made[name]["files"]}
        mounted = {mount["name"]: mount["mountPath"] for mount in container(DEPLOYMENTS[name])["volumeMounts"]}
        assert keys == {path}
        assert any(
            argument.endswith(f"={mounted['config']}/{path}") for argument in container(DEPLOYMENTS[name])["args"]
        )


def test_the_monitor_of_the_operator_selects_the_apps() -> None:
    """The same pods and port as prometheus.yml."""
    monitor = yaml.safe_load((DEPLOY / "kubernetes/pod-monitor.yaml").read_text("utf-8"))
    found = selected(monitor["spec"]["selector"])
    assert [one["metadata"]["name"] for one in found] == ["shop", "payments"]
    assert all(monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports(one) for one in found)
    assert monitor["metadata"]["namespace"] == KUSTOMIZATION["namespace"]


# What the programs are configured with


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the environment of each app, in compose and in Kubernetes, as the container gets it."""
    shared = dict(line.split("=", 1) for line in (DEPLOY / "kubernetes/app.env").read_text("utf-8").splitlines())
    for name in ("shop", "payments"):
        yield f"compose {name}", COMPOSE["services"][name]["environment"]
        own = {one["name"]: one.get("value", "x") for one in container(DEPLOYMENTS[name])["env"]}
        yield f"kubernetes {name}", shared | {key: re.sub(r"\$\(\w+\)", "x", value) for key, value in own.items()}


ENVIRONMENTS = dict(environments())


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_variables_are_ours(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each OBSERVE_* and OTEL_* variable sets an option, to what the page says: spans and lines to the Collector."""
    environment = ENVIRONMENTS[where]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = ObserveSettings()
    assert settings.traces_url == "http://otel-collector:4318/v1/traces"
    assert settings.otlp_logs is True
    sources = set(settings.sources().values())
    assert {key for key in environment if key.startswith(("OBSERVE_", "OTEL_"))} <= sources
    for key in {"PAYMENTS_URL"} & set(environment):
        assert environment[key] == "http://payments:8000"
    assert set(environment) <= {*sources, "PAYMENTS_URL", "POD_NAME", "POD_UID", "POD_NAMESPACE", "NODE_NAME"}


def test_the_collector_is_where_the_apps_look() -> None:
    """Pipelines are made of parts that are there; ports are those of the manifests; stores are services with them."""
    collector = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text("utf-8"))
    for signal, pipeline in collector["service"]["pipelines"].items():
        assert signal in {"traces", "logs"}
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
        assert pipeline["processors"][0] == "memory_limiter"
    protocols = collector["receivers"]["otlp"]["protocols"]
    listening = {f"otlp-{name}": int(one["endpoint"].rpartition(":")[2]) for name, one in protocols.items()}
    assert listening.items() <= ports(DEPLOYMENTS["otel-collector"]).items()
    services = {name: {port["port"] for port in one["spec"]["ports"]} for name, one in of_kind("Service").items()}
    for exporter in collector["exporters"].values():
        address = httpx.URL(exporter["endpoint"])
        assert address.host in COMPOSE["services"]
        assert address.port in services[address.host]


def test_grafana_asks_who_is_there() -> None:
    """Data sources refer to each other by names that exist, and to services by ports that they have."""
    path = "grafana/provisioning/datasources/datasources.yaml"
    sources = yaml.safe_load((DEPLOY / path).read_text("utf-8"))["datasources"]
    for source in sources:
        address = httpx.URL(source["url"])
        assert address.host in COMPOSE["services"]
        assert address.port in {port["port"] for port in of_kind("Service")[address.host]["spec"]["ports"]}
    referred = set(re.findall(r"datasourceUid: (\w+)", (DEPLOY / path).read_text("utf-8")))
    assert referred <= {source["uid"] for source in sources}


@pytest.mark.parametrize("path", ["prometheus.yml", "kubernetes/prometheus.yml"])
def test_promtool_accepts_the_configuration(path: str, tmp_path: Path) -> None:
    """`promtool check config`; discovery in Kubernetes, which Debian's promtool was built without, is taken out."""
    config = yaml.safe_load((DEPLOY / path).read_text("utf-8"))
    for job in config["scrape_configs"]:
        for found in job.pop("kubernetes_sd_configs", ()):
            assert found == {"role": "pod", "namespaces": {"own_namespace": True}}
    adapted = tmp_path / "prometheus.yml"
    adapted.write_text(yaml.safe_dump(config), "utf-8")
    command = [needs("promtool"), "check", "config", str(adapted if "kubernetes" in path else DEPLOY / path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 0, result.stdout + result.stderr


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)

    async def ask(self, path: str, **parameters: str) -> Any:
        """Return `data` of a response of its API."""
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        return answer.raise_for_status().json()["data"]

    async def until(self, path: str, condition: Any, **parameters: str) -> Any:
        """Ask until the response is as wanted."""
        deadline = time.monotonic() + 30
        while True:
            try:
                if condition(found := await self.ask(path, **parameters)):
                    return found
            except httpx.HTTPError:  # it is starting
                found = None
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()


@asynccontextmanager
async def prometheus(config: str, directory: Path) -> AsyncIterator[Prometheus]:
    """Run Prometheus with a configuration while the block runs."""
    (directory / "prometheus.yml").write_text(config, "utf-8")
    address = f"127.0.0.1:{free_port()}"
    flags = [one for one in COMPOSE["services"]["prometheus"]["command"] if one.startswith("--enable-feature")]
    process = await asyncio.create_subprocess_exec(
        needs("prometheus"),
        *(f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"),
        *(f"--web.listen-address={address}", *flags),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    server = Prometheus(f"http://{address}")
    try:
        yield server
    finally:
        await server.close()
        process.terminate()
        await process.wait()


QUERIES = [
    line
    for block in re.findall(
        r"^```promql\n(.*?)^```$", (ROOT / "docs/how-to/scaling.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    for line in block.splitlines()
]


async def test_prometheus_scrapes_the_shop(tmp_path: Path) -> None:
    """With deploy/prometheus.yml, hosts and the interval aside: apps are up, exemplars kept, the page's queries run."""
    needs("prometheus")
    config = (DEPLOY / "prometheus.yml").read_text("utf-8")
    async with (
        run_service("payments", 0, tmp_path) as payments,
        run_service("shop", 0, tmp_path, PAYMENTS_URL=payments.url) as shop,
    ):
        await payments.ready()
        await shop.ready()
        for name, target in (("shop:8000", shop.url), ("payments:8000", payments.url), ("otel-collector:8888", CLOSED)):
            assert name in config
            config = config.replace(name, target.removeprefix("http://"))
        config = re.sub(r"(scrape_interval|scrape_timeout): \d+s", r"\1: 1s", config)
        async with httpx.AsyncClient(base_url=shop.url, trust_env=False, timeout=60) as client:
            for _ in range(3):
                assert (await client.get("/products")).is_success
        async with prometheus(config, tmp_path) as server:
            targets = await server.until(
                "targets",
                lambda found: {one["health"] for one in found["activeTargets"]} == {"up", "down"},
            )
            assert {one["labels"]["job"]: one["health"] for one in targets["activeTargets"]} == {
                "shop": "up",
                "payments": "up",
                "otel-collector": "down",
            }
            count = 'http_requests_total{job="shop",endpoint="/products",status_code="200"}'
            (series,) = (await server.until("query", lambda found: found["result"], query=count))["result"]
            assert series["value"][1] == "3"
            assert series["metric"]["instance"] == shop.url.removeprefix("http://")
            found = await server.ask("query_exemplars", query=count, start="0", end=str(time.time() + 60))
            assert len(found[0]["exemplars"][-1]["labels"]["trace_id"]) == 32
            for query in QUERIES:
                await server.ask("query", query=query)
    assert len(QUERIES) == 7
