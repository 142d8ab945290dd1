"""The shop of the demo: routes that work, are slow, repeat a query, block the event loop and fail."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from fastapi import BackgroundTasks, FastAPI, HTTPException

from fastapi_observe import DatabaseDep, ExternalDep, LogDep, get_observability, install

if TYPE_CHECKING:
    from fastapi_observe.clients.database.client import DatabaseClient
    from fastapi_observe.clients.http.external import ExternalClient

ORDERS: Final = 12
PRODUCTS: Final = ("cup", "plate", "bowl", "spoon", "lamp")

SCHEMA: Final = """
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, cents INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT);
CREATE TABLE items (order_id INTEGER, product_id INTEGER, count INTEGER);
"""

SALES: Final = """
WITH RECURSIVE days(day) AS (SELECT 1 UNION ALL SELECT day + 1 FROM days WHERE day < 300000)
SELECT count(*) FROM days WHERE day % 7 = 3
"""
"""A report that takes a while: it counts to 300,000."""

STEP_SECONDS: Final = 0.2
"""Between the steps of the report, so that the request is slow on a fast machine too."""

BLOCKED_SECONDS: Final = 0.15


class PaymentError(Exception):
    """Raised when an order cannot be paid."""


class Storage:
    """A database in memory. SQLite's connection is used by one thread at a time."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        self._connection.executescript(SCHEMA)
        for number, name in enumerate(PRODUCTS, 1):
            self._connection.execute("INSERT INTO products VALUES (?, ?, ?)", (number, name, number * 450))
        for order in range(1, ORDERS + 1):
            self._connection.execute("INSERT INTO orders VALUES (?, ?)", (order, f"customer {order}"))
            self._connection.execute("INSERT INTO items VALUES (?, ?, ?)", (order, 1 + order % len(PRODUCTS), order))

    def fetch(self, db: DatabaseClient, statement: str, *parameters: object) -> list[Any]:
        """Return the rows of a statement, measured as one query."""
        with db.query(statement=statement, parameters=parameters, system="sqlite"), self._lock:
            return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Payments:
    """A payment service that is made up: every fourth charge fails, every tenth takes long."""

    def __init__(self) -> None:
        self._charges = itertools.count(1)

    async def charge(self, external: ExternalClient, cents: int) -> None:
        """Charge a card. Raises `PaymentError`."""
        number = next(self._charges)
        try:
            async with external.call("payments.example", "POST /charges", cents=cents) as call:
                await asyncio.sleep(0.6 if number % 10 == 0 else 0.03)
                if number % 4 == 0:
                    raise ConnectionResetError("payments.example closed the connection")  # noqa: TRY301 - the demo
                call.set_status_code(201)
        except ConnectionResetError as exc:
            raise PaymentError("the card was not charged") from exc


def make_app() -> FastAPI:  # noqa: C901 - one function for each route
    """Return the shop. It exports nothing, whatever the environment says: its data are made up."""
    app = FastAPI(title="demo shop")
    install(
        app,
        environment="development",
        service_name="demo-shop",
        console=True,
        log_format="text",
        slow_request_threshold=0.3,
        repeated_query_threshold=10,
        blocked_loop_threshold=0.1,
        sample_ratio=1.0,
        otlp_endpoint=None,
        otlp_logs=False,
        otlp_metrics=False,
        log_file=None,
        multiprocess="off",
    )
    storage, payments = Storage(), Payments()

    @app.get("/products")
    async def list_products(db: DatabaseDep) -> list[str]:
        return [name for _, name, _ in storage.fetch(db, "SELECT id, name, cents FROM products ORDER BY id")]

    @app.get("/products/{product_id}")
    async def read_product(product_id: int, db: DatabaseDep) -> dict[str, Any]:
        rows = storage.fetch(db, "SELECT name, cents FROM products WHERE id = ?", product_id)
        if not rows:
            raise HTTPException(404)
        return {"name": rows[0][0], "cents": rows[0][1]}

    @app.get("/products/{product_id}/discount")
    async def read_discount(product_id: int, db: DatabaseDep) -> int:
        rows = storage.fetch(db, "SELECT name FROM products WHERE id = ?", product_id)
        discounts = {"cup": 10, "plate": 20}
        return discounts[rows[0][0]]  # the bug of this shop: not every product has one

    @app.get("/orders")
    async def list_orders(db: DatabaseDep) -> list[dict[str, Any]]:
        orders = storage.fetch(db, "SELECT id, customer FROM orders ORDER BY id")
        # One query for each order: the console and the log say so.
        return [
            {"id": order, "customer": customer, "items": storage.fetch(db, ITEMS, order)} for order, customer in orders
        ]

    @app.post("/orders/{order_id}/checkout", status_code=201)
    async def checkout(
        order_id: int, db: DatabaseDep, external: ExternalDep, log: LogDep, tasks: BackgroundTasks
    ) -> str:
        (cents,) = storage.fetch(db, TOTAL, order_id)[0]
        await payments.charge(external, cents)
        log.info("order paid", order_id=order_id, cents=cents)
        tasks.add_task(send_mail, order_id)
        return "paid"

    async def send_mail(order_id: int) -> None:
        async with get_observability().operation("send mail", order_id=order_id):
            await asyncio.sleep(0.05)

    @app.get("/reports/sales")
    def report(db: DatabaseDep) -> int:
        total = 0
        for _ in range(2):
            total += storage.fetch(db, SALES)[0][0]
            time.sleep(STEP_SECONDS)
        return total

    @app.get("/export")
    async def export() -> str:
        time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - the mistake that the console finds
        return "exported"

    return app


ITEMS: Final = "SELECT product_id, count FROM items WHERE order_id = ?"
TOTAL: Final = """
SELECT sum(products.cents * items.count)
FROM items JOIN products ON products.id = items.product_id WHERE items.order_id = ?
"""
