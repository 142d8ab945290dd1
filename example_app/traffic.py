"""A little traffic: each kind of request once or a few times."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from uuid import uuid4

import httpx
from websockets.asyncio.client import connect

COFFEE, SLOW_COFFEE, MACHINE, LAST_CUP = 1, 2, 3, 4
"""The seeded products."""


@dataclass(frozen=True)
class Told:
    """What the traffic leaves to be shown."""

    order_id: int
    trace_id: str
    repeating_trace_id: str
    event: dict[str, object]


async def send_traffic(url: str) -> Told:
    """Visit the shop at `url` as a new customer; return what is worth a look."""
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        await browse(client)
        await sign_up(client)
        order_id, trace_id, event = await buy(client, url)
        repeating_trace_id = await report(client)
    return Told(order_id, trace_id, repeating_trace_id, event)


async def browse(client: httpx.AsyncClient) -> None:
    """Look around, also where nothing is."""
    for path in ("/", "/products", "/products", "/products/", f"/products/{COFFEE}", "/products/999", "/nowhere"):
        await client.get(path)
    await client.head("/static/index.html")
    await client.get("/static/index.html")
    await client.put("/products")


async def sign_up(client: httpx.AsyncClient) -> None:
    """Register and log in, with the mistakes that people make."""
    account = {"email": f"ada.{uuid4().hex[:12]}@example.com", "name": "Ada", "password": uuid4().hex}
    await client.post("/customers", json=account | {"email": "not an address"})
    await client.post("/customers", json=account)
    await client.post("/customers", json=account)
    await client.get("/orders")
    await client.post("/login", json=account | {"password": "a wrong guess"})
    answer = await client.post("/login", json=account)
    answer.raise_for_status()
    client.headers["authorization"] = f"Bearer {answer.json()['token']}"


async def buy(client: httpx.AsyncClient, url: str) -> tuple[int, str, dict[str, object]]:
    """Pay one order while a WebSocket watches, have a dear one declined, and find one product sold out.

    Return the order that was paid, the trace in which it was, and what the WebSocket heard.
    """
    paid = await order(client, {COFFEE: 2, SLOW_COFFEE: 1})
    dear = await order(client, {MACHINE: 1})
    await client.post("/orders", json={"lines": [{"product_id": LAST_CUP, "quantity": 1}]})
    await client.post("/orders", json={"lines": []})
    # A socket of our own: no proxy of the environment stands between here and the shop.
    sock = socket.create_connection((client.base_url.host, client.base_url.port))
    async with connect(url.replace("http", "ws", 1) + "/ws/orders", sock=sock) as events:
        receipt = await client.post(f"/orders/{paid}/checkout")
        receipt.raise_for_status()
        event = json.loads(await events.recv())
    await client.post(f"/orders/{paid}/checkout")
    await client.post(f"/orders/{dear}/checkout")
    await client.get("/orders")
    await client.get(f"/orders/{paid}")
    async with client.stream("GET", "/orders/export") as export:
        async for _line in export.aiter_lines():
            pass
    await client.get(f"/admin/charges/{receipt.json()['charge_id']}")
    return paid, trace_id_of(receipt), event


def trace_id_of(answer: httpx.Response) -> str:
    """Return the trace of a request, from its answer."""
    # W3C Trace Context Level 2: <version>-<trace id>-<span id>-<flags>
    return str(answer.headers["traceresponse"].split("-")[1])


async def order(client: httpx.AsyncClient, cart: dict[int, int]) -> int:
    """Order so many pieces of each product; return the order's id."""
    lines = [{"product_id": product, "quantity": quantity} for product, quantity in cart.items()]
    answer = await client.post("/orders", json={"lines": lines})
    answer.raise_for_status()
    return int(answer.json()["id"])


async def report(client: httpx.AsyncClient) -> str:
    """Ask for each report, and for the back office; return the trace of the report that repeats its queries."""
    repeating = await client.get("/reports/customers-slow")
    for path in ("/reports/customers", "/reports/slow-query", "/reports/slow", "/admin/stats", "/admin/payments"):
        await client.get(path)
    await client.get("/docs")
    # The broken one comes last: uvicorn closes the connection after an unhandled exception.
    await client.get("/reports/broken")
    return trace_id_of(repeating)
