"""The documentation: its examples run, and it describes exactly what comes out."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import AsyncIterator  # noqa: TC003 - FastAPI reads the annotations
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from lambda_adapter import provide_mangum
from prometheus_client import REGISTRY, CollectorRegistry, GCCollector, PlatformCollector
from prometheus_client.parser import text_string_to_metric_families
from tools import needs

import fastapi_observe
from fastapi_observe import DatabaseDep, ExternalDep, MetricsDep, current, observability
from fastapi_observe.cli.main import main
from fastapi_observe.export.counts import ExportCollector
from fastapi_observe.internal.prometheus_client import list_collectors
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.metrics.shared.cells import WorkersCollector
from fastapi_observe.records.pool import PoolState
from fastapi_observe.settings.objectives import Availability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "example_app/from-the-go-guide.md", *sorted((ROOT / "docs").rglob("*.md")))
REPOSITORY = "https://github.com/fastapi-observe/fastapi-observe/blob/main/"
"""Address of a file of the repository; pages of the site link to files outside docs by it."""
PICTURES = "https://raw.githubusercontent.com/fastapi-observe/fastapi-observe/main/"
SEMCONV = "The names of OpenTelemetry"
CONTINUES = "# continues\n"
"""First line of a block that goes on where the one before it on the page ended."""


class Example(NamedTuple):
    """Python code of a page with the blocks that continue it; every line keeps its line number of the page."""

    page: Path
    line: int
    code: str


def examples(page: Path) -> list[Example]:
    """Return the python blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), list[Example]()
    for block in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        line, code = text.count("\n", 0, block.start(2)) + 1, dedent(block[2])
        if code.startswith(CONTINUES):
            before = found.pop()
            padding = "\n" * (line - 1 - before.code.count("\n"))
            found.append(before._replace(code=before.code + padding + code))
        else:
            found.append(Example(page, line, "\n" * (line - 1) + code))
    return found


EXAMPLES = [example for page in PAGES for example in examples(page)]


@pytest.fixture
def _uninstall() -> Iterator[None]:
    """Whatever an example installs is closed after it; what it put into the default registry is taken out."""
    before, registered = list(observability.INSTALLED), set(list_collectors(REGISTRY))
    yield
    for one in reversed([each for each in observability.INSTALLED if each not in before]):
        one.close()
    for collector in set(list_collectors(REGISTRY)) - registered:
        REGISTRY.unregister(collector)


@pytest.fixture
def _hosts_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host that an example calls responds with 200: no example leaves this machine."""

    async def answer(_transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"path": request.url.path})

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)


@pytest.fixture
def _lambda_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples can import `mangum`."""
    provide_mangum(monkeypatch)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{each.page.stem}-{each.line}" for each in EXAMPLES])
@pytest.mark.usefixtures("_uninstall", "_hosts_that_answer", "_lambda_adapter")
def test_an_example_runs(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every python block runs as it is, and every path operation in it responds without failing."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example.code, str(example.page), "exec", dont_inherit=True), names)  # noqa: S102 - our own pages
    for app in [value for value in names.values() if isinstance(value, FastAPI)]:
        with TestClient(app) as client:
            for route in [each for each in app.routes if isinstance(each, APIRoute)]:
                path = re.sub(r"\{\w+\}", "7", route.path)
                for method in route.methods or ():
                    assert client.request(method, path).status_code < 400, f"{method} {path}"


def test_every_page_is_checked() -> None:
    """The README and the pages about the signals have examples."""
    stems = {example.page.stem for example in EXAMPLES}
    assert stems >= {"README", "start", "logging", "own-metrics", "own-spans", "from-the-go-guide", "configuration"}


LINKING = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("benchmarks/*.md")})


@pytest.mark.parametrize("page", LINKING, ids=[page.relative_to(ROOT).as_posix() for page in LINKING])
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of a page to a file of the repository leads to one, and to a heading of it."""
    for target in re.findall(rf"\]\(((?!https?:)[^)\s]+|{REPOSITORY}[^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        if name.startswith(REPOSITORY):
            file = ROOT / name.removeprefix(REPOSITORY)
        else:
            file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            assert heading in {slug(line) for line in file.read_text(encoding="utf-8").splitlines()}, target


def test_the_readme_has_absolute_links() -> None:
    """The package index shows it too, where relative links lead nowhere; its picture is a file of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    pictures = re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", text)
    assert len(pictures) == 1
    assert (ROOT / pictures[0].removeprefix(PICTURES)).is_file()


def test_messages_name_pages_of_the_site() -> None:
    """Each address in a message of the package leads to a page and a heading; the metadata has the site's address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert documentation_url("start") == f"{site['site_url']}start/"
    assert documentation_url("start#install") == f"{project['urls']['Documentation']}start/#install"
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "fastapi_observe").rglob("*.py"))
    named = re.findall(r"""documentation_url\(["']([^"']+)["']\)""", sources)
    assert named
    for page, _, heading in (name.partition("#") for name in named):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert not heading or heading in {slug(line) for line in text.splitlines()}


def test_every_page_is_in_the_navigation() -> None:
    """The site leads to each page, once."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert sorted(leaves(site["nav"])) == sorted(pages)


def test_the_index_leads_to_every_page() -> None:
    """A reader without the site's navigation, as on GitHub, finds each page; those of the tutorial are a series."""
    index = ROOT / "docs/index.md"
    linked = {index.parent / target for target in re.findall(r"\]\(([^)\s]+\.md)\)", index.read_text(encoding="utf-8"))}
    docs = {page for page in PAGES if page.is_relative_to(index.parent)}
    assert {page for page in docs - linked if page.parent.name != "tutorial"} == {index}


def leaves(item: Any) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(item, str):
        return [item]
    parts = item.values() if isinstance(item, dict) else item
    return [page for part in parts for page in leaves(part)]


def test_the_api_page_has_every_public_name() -> None:
    """As the site finds its docstring, by the module that defines it; the page on configuration has the options."""
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    aliases = {name for name in fastapi_observe.__all__ if name.endswith("Dep")}
    described = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    assert "::: fastapi_observe.dependencies\n" in text
    assert described >= set(fastapi_observe.__all__) - aliases - {"ObserveSettings", "SettingsError"}


def test_every_command_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/reference/cli.md has each command, and no other."""
    commands = section("reference/cli.md", "All")
    described = {re.sub(r" (?:[A-Z\[].*|last)$", "", cells[0]) for cells in rows(commands)}
    for group in ([], ["slo"]):
        with pytest.raises(SystemExit):
            main([*group, "--help"])
        shown = re.findall(r"^    (\w+)\b", capsys.readouterr().out, re.MULTILINE)
        names = {" ".join([*group, name]) for name in shown} - {"slo"}
        assert {name for name in described if name.startswith("slo ") == bool(group)} == names


def slug(line: str) -> str:
    """Return the anchor that a heading gets."""
    if not line.startswith("#"):
        return ""
    return re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")


def section(page: str, heading: str, *, level: int = 2) -> str:
    """Return the part of a page below a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.split(r"\n##+ ", text.partition(f"\n{'#' * level} {heading}\n")[2])[0]


def metrics_of(text: str) -> dict[str, tuple[str, set[str]]]:
    """Return the type and the labels of the metrics in tables."""
    found: dict[str, tuple[str, set[str]]] = {}
    labels = set[str]()
    for name, kind, words, *_ in (cells for cells in rows(text) if len(cells) >= 3):
        if kind in {"counter", "gauge", "histogram"}:
            labels = labels if words == "the same" else set(re.findall(r"`(\w+)`", words))
            found[name] = (kind, labels)
    return found


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row whose first cell is code, without the backticks around the first."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if "| `" in line]
    return [[cells[0].removeprefix("|").strip().strip("`"), *cells[1:]] for cells in found if "`" in cells[0]]


class Everything(NamedTuple):
    """All that there is to show: `/metrics` as text, lines of the log, server spans."""

    metrics: str
    seen: Seen


def add_orders(app: FastAPI) -> None:
    """Add a path operation that uses every helper."""

    @app.get("/orders/{order_id}")
    async def read_order(  # noqa: PLR0913, PLR0917 - FastAPI hands in what a path operation names
        order_id: int,
        tasks: BackgroundTasks,
        db: DatabaseDep,
        external: ExternalDep,
        metrics: MetricsDep,
        limit: Annotated[int, Query(gt=0)] = 1,
    ) -> int:
        for _ in range(2):
            async with db.query("SELECT", table="orders"), external.call("billing", "get_invoice"):
                pass
        db.add_pool("main", lambda: PoolState(active=1, overflow=0))
        current.get_observability().record_connection_wait("main", 0.001)
        current.get_observability().record_connection_event("main", "begin")
        with current.get_observability().operation("charge card"):
            pass
        with current.get_observability().job("send mail"):
            pass
        with pytest.raises(LookupError), db.query("DELETE", table="orders"):
            raise LookupError
        tasks.add_task(print)
        business = metrics.business
        for each in (business.user_registered, business.user_logged_in, business.order_created):
            each()
        business.revenue(9, "EUR")
        metrics.set_database_connections(active=1, idle=2, max=3, waiting=4)
        many = metrics.counter("many", "Has too many label values.", ["value"])
        for value in range(30):
            many.labels(value).inc()
        return order_id + limit


def add_oddities(app: FastAPI) -> None:
    """Add a stream, a failure, a refusal and a WebSocket."""

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return StreamingResponse(parts())

    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("on purpose")

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(409)


@pytest.fixture
def everything(observed: Callable[..., Seen]) -> Everything:
    """Have an app show everything there is to show."""
    registry = CollectorRegistry()
    for collector in (PlatformCollector, GCCollector):  # as in the default registry, where other tests leave theirs
        collector(registry)
    app = FastAPI()
    seen = observed(
        app,
        registry=registry,
        include_default_registry=False,
        repeated_query_threshold=1,
        tail_sampling=("errors",),
        slos=[Availability("orders", 99.9, routes=["/orders/{order_id}"])],
        max_series_per_metric=20,
        capture_request_headers=["x-tenant"],
        capture_response_headers=["content-type"],
    )

    add_orders(app)
    add_oddities(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("/orders/7?limit=2", "/orders/x", "/stream", "/broken", "/refused", "/nowhere"):
            client.get(path, headers={"x-tenant": "a"})
        client.request("BREW", "/orders/7", headers={"x-request-id": "of-the-caller"})
        with client.websocket_connect("/ws") as socket:
            socket.send_text("hello")
            socket.receive_text()
        seen.observe.internal_errors("example", LookupError())
        seen.observe.metrics.record_blocked_loop("/orders/{order_id}", 0.2)
        # here and not later: some metrics are there while the loop runs
        return Everything(client.get("/metrics").text, seen)


def test_every_metric_is_described(everything: Everything) -> None:
    """docs/reference/metrics.md has a row for each metric with its type and exactly its labels, and no other."""
    shown = {}
    for family in text_string_to_metric_families(everything.metrics):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown[name] = (family.type, labels)
    del shown["many_total"]
    for collector in (ExportCollector(()), WorkersCollector()):  # these are shown with a collector, with workers
        for family in collector.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown[name] = (family.type, {*vars(family)["_labelnames"]})
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    described = metrics_of(page.replace(section("reference/metrics.md", SEMCONV, level=3), ""))
    assert described == shown


def test_every_name_of_opentelemetry_is_described(observed: Callable[..., Seen]) -> None:
    """The table of the names that `metric_names="semconv"` gives has each with its type and labels, and no other."""
    app = FastAPI()
    observed(app, registry=CollectorRegistry(), include_default_registry=False, metric_names="semconv")

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(503)

    with TestClient(app) as client:
        client.get("/refused")
        families = [*text_string_to_metric_families(client.get("/metrics").text)]
    shown = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in families
        if family.name.startswith("http_server_")
    }
    assert metrics_of(section("reference/metrics.md", SEMCONV, level=3)) == shown


def test_buckets_are_described(everything: Everything) -> None:
    """docs/reference/metrics.md has the bucket bounds of every histogram of this package."""
    described = section("reference/metrics.md", "Buckets")
    for family in text_string_to_metric_families(everything.metrics):
        bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels} - {"+Inf"}
        if bounds:
            (line,) = [line for line in described.splitlines() if line.startswith("| `") and f"`{family.name}`" in line]
            numbers = re.sub(r".*\|", "", line.strip().strip("|"))
            assert {float(number) for number in numbers.replace(",", " ").split()} == {*map(float, bounds)}


def test_every_key_of_a_line_is_described(everything: Everything) -> None:
    """docs/reference/logs.md has every key of a line."""
    described = {cells[0] for cells in rows(section("reference/logs.md", "The line"))}
    assert {key for line in everything.seen.lines for key in line} == described


def test_every_field_of_a_request_line_is_described(everything: Everything) -> None:
    """docs/reference/logs.md has every field of the lines about requests and WebSocket connections, and no other."""
    described = {cells[0] for cells in rows(section("reference/logs.md", "The request line"))}
    assert {field for line in everything.seen.request_lines for field in line["fields"]} == described


def test_every_attribute_of_a_server_span_is_described(everything: Everything) -> None:
    """docs/reference/spans.md has every attribute of a server span, and no other."""
    described = {cells[0] for cells in rows(section("reference/spans.md", "The server span"))}
    shown = {
        re.sub(r"(?<=\.header\.).*", "<name>", name)
        for span in everything.seen.server_spans
        for name in span.attributes or ()
    }
    assert shown == described


def test_prometheus_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    """The scrape configuration of docs/reference/metrics.md is one."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    (configuration,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration, encoding="utf-8")
    checked = subprocess.run([needs("promtool"), "check", "config", file], capture_output=True, check=False, text=True)  # noqa: S603
    assert checked.returncode == 0, checked.stderr
