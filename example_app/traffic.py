"""Some traffic: each kind of request once or a few times."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from uuid import uuid4

import httpx
from websockets.asyncio.client import connect

COFFEE, SLOW_COFFEE, MACHINE, LAST_CUP = 1, 2, 3, 4
"""Ids of the seeded products."""


@dataclass(frozen=True)
class Traffic:
    """The parts of the traffic that the tour shows."""

    order_id: int
    trace_id: str
    repeating_trace_id: str
    event: dict[str, object]


async def send_traffic(url: str) -> Traffic:
    """Use the shop at `url` as a new customer."""
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        await browse(client)
        await sign_up(client)
        order_id, trace_id, event = await buy(client, url)
        repeating_trace_id = await report(client)
    return Traffic(order_id, trace_id, repeating_trace_id, event)


async def browse(client: httpx.AsyncClient) -> None:
    """Request pages and products, some of which do not exist."""
    for path in ("/", "/products", "/products", "/products/", f"/products/{COFFEE}", "/products/999", "/nowhere"):
        await client.get(path)
    await client.head("/static/index.html")
    await client.get("/static/index.html")
    await client.put("/products")


async def sign_up(client: httpx.AsyncClient) -> None:
    """Register and log in, with some invalid requests."""
    account = {"email": f"ada.{uuid4().hex[:12]}@example.com", "name": "Ada", "password": uuid4().hex}
    await client.post("/customers", json=account | {"email": "not an address"})
    await client.post("/customers", json=account)
    await client.post("/customers", json=account)
    await client.get("/orders")
    await client.post("/login", json=account | {"password": "a wrong guess"})
    response = await client.post("/login", json=account)
    response.raise_for_status()
    client.headers["authorization"] = f"Bearer {response.json()['token']}"


async def buy(client: httpx.AsyncClient, url: str) -> tuple[int, str, dict[str, object]]:
    """Pay one order while a WebSocket is open; another order is declined, and one product is sold out.

    Returns the id of the paid order, the trace id of its checkout, and the event that the WebSocket received.
    """
    paid = await order(client, {COFFEE: 2, SLOW_COFFEE: 1})
    expensive = await order(client, {MACHINE: 1})
    await client.post("/orders", json={"lines": [{"product_id": LAST_CUP, "quantity": 1}]})
    await client.post("/orders", json={"lines": []})
    # Connected here, since the WebSocket client would use a proxy of the environment.
    sock = socket.create_connection((client.base_url.host, client.base_url.port))
    async with connect(url.replace("http", "ws", 1) + "/ws/orders", sock=sock) as events:
        receipt = await client.post(f"/orders/{paid}/checkout")
        receipt.raise_for_status()
        event = json.loads(await events.recv())
    await client.post(f"/orders/{paid}/checkout")
    await client.post(f"/orders/{expensive}/checkout")
    await client.get("/orders")
    await client.get(f"/orders/{paid}")
    async with client.stream("GET", "/orders/export") as export:
        async for _line in export.aiter_lines():
            pass
    await client.get(f"/admin/charges/{receipt.json()['charge_id']}")
    return paid, trace_id_of(receipt), event


def trace_id_of(response: httpx.Response) -> str:
    """Return the trace id in the `traceresponse` header."""
    # W3C Trace Context Level 2: <version>-<trace id>-<span id>-<flags>
    return str(response.headers["traceresponse"].split("-")[1])


async def order(client: httpx.AsyncClient, cart: dict[int, int]) -> int:
    """Order products, given as pieces by product id. Returns the id of the order."""
    lines = [{"product_id": product, "quantity": quantity} for product, quantity in cart.items()]
    response = await client.post("/orders", json={"lines": lines})
    response.raise_for_status()
    return int(response.json()["id"])


async def report(client: httpx.AsyncClient) -> str:
    """Request each report and the back office. Returns the trace id of the report with repeated queries."""
    repeating = await client.get("/reports/customers-slow")
    for path in ("/reports/customers", "/reports/slow-query", "/reports/slow", "/admin/stats", "/admin/payments"):
        await client.get(path)
    await client.get("/docs")
    # The broken one comes last: uvicorn closes the connection after an unhandled exception.
    await client.get("/reports/broken")
    return trace_id_of(repeating)
