"""A real Prometheus that scrapes the example shop under traffic and evaluates its rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import httpx
import interpreter
from tools import needs

from example_app.services import run_service
from example_app.traffic import send_traffic

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Sequence

ROOT: Final = Path(__file__).parents[2]
TIMEOUT: Final = 90.0
"""Seconds within which each event must happen, also on a busy machine."""


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run what `python -m fastapi_observe` runs, in another process."""
    script = "import sys\nfrom fastapi_observe.cli.main import main\nsys.argv[0] = '__main__.py'\nsys.exit(main())"
    return interpreter.run(script, *arguments, directory=cwd, environment={**os.environ, **environment})


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Api:
    """The HTTP API of a running Prometheus or Alertmanager."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client

    async def get(self, path: str, **parameters: str) -> Any:
        """Return a response of the API."""
        return (await self.client.get(f"{self.url}/api/{path}", params=parameters)).json()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current vector of a PromQL expression."""
        answer = await self.get("v1/query", query=expression)
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def until(self, expression: str) -> list[dict[str, Any]]:
        """Wait until an expression has a result, and return it."""
        deadline = monotonic() + TIMEOUT
        while monotonic() < deadline:
            if found := await self.query(expression):
                return found
            await asyncio.sleep(0.2)
        raise AssertionError(f"{expression} has no data")


@asynccontextmanager
async def serving(program: str, directory: Path, config: Path, *options: str) -> AsyncIterator[Api]:
    """Run Prometheus or Alertmanager with a configuration file while the block runs."""
    port, path, log = free_port(), needs(program), directory / f"{program}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            path,
            f"--config.file={config}",
            f"--web.listen-address=127.0.0.1:{port}",
            *options,
            cwd=directory,
            stdout=output,
            stderr=output,
        )
    try:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            asked = Api(f"http://127.0.0.1:{port}", client)
            deadline = monotonic() + TIMEOUT
            while True:
                assert monotonic() < deadline, log.read_text("utf-8")[-1000:]
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{asked.url}/-/ready")).is_success:
                        break
                await asyncio.sleep(0.05)
            yield asked
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def prometheus(directory: Path, config: dict[str, Any], *options: str) -> AsyncIterator[Api]:
    """Run a Prometheus in a directory."""
    file = directory / "prometheus.yml"
    file.write_text(json.dumps(config), "utf-8")
    async with serving("prometheus", directory, file, f"--storage.tsdb.path={directory}/data", *options) as asked:
        yield asked


def scraping(target: str, *, job: str = "shop", interval: str = "1s", rules: Sequence[str] = ()) -> dict[str, Any]:
    """Return a configuration that scrapes one target."""
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [*rules],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9"]}]}]},
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [target]}]}],
    }


def every_second(rules: str) -> str:
    """Return rules that are evaluated every second, so that they have data soon."""
    return re.sub(r"interval: \S+", "interval: 1s", rules)


@asynccontextmanager
async def monitored_shop(directory: Path, bundle: Path) -> AsyncIterator[tuple[Api, str]]:
    """Run shop and payments under traffic, and a Prometheus with the shop's rules; yield it, and the shop's URL."""
    rules = directory / "rules.yml"
    rules.write_text(every_second((bundle / "rules.yml").read_text("utf-8")), "utf-8")
    async with AsyncExitStack() as stack:
        payments = await stack.enter_async_context(run_service("payments", 0, directory))
        shop = await stack.enter_async_context(run_service("shop", 0, directory, PAYMENTS_URL=payments.url))
        await payments.ready()
        await shop.ready()
        config = scraping(shop.url.removeprefix("http://"), rules=["rules.yml"])
        options = ("--enable-feature=exemplar-storage", "--storage.tsdb.retention.time=35d")
        asked = await stack.enter_async_context(prometheus(directory, config, *options))
        traffic = asyncio.create_task(_send_for_ever(shop.url))
        try:
            yield asked, shop.url
        finally:
            traffic.cancel()
            await asyncio.wait([traffic])


async def _send_for_ever(url: str) -> None:
    while True:
        await send_traffic(url)
