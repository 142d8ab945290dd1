"""The shop: start it alone with `uvicorn example_app.shop:app`, or together with payments by `make run`."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from example_app.database import ShopTables, make_engine, open_database, seed
from example_app.errors import ShopError, refuse
from example_app.events import OrderEvents
from example_app.routers import customers, orders, products, reports
from example_app.routers.admin import admin
from example_app.spans import span_file
from fastapi_observe import Availability, Latency, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAYMENTS_URL = os.environ.get("PAYMENTS_URL", "http://127.0.0.1:8001")
PAYMENTS_TEMPLATES = ("/charges", "/charges/{charge_id}")
"""Path templates of calls to payments, so that ids in paths do not become metric labels."""


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the database and the clients. The yielded mapping becomes `request.state` of every request."""
    async with (
        open_database(engine, ShopTables) as sessions,
        observe.http_client(service="payments", base_url=PAYMENTS_URL, templates=PAYMENTS_TEMPLATES) as payments,
    ):
        with observe.job("seed the shop"):
            await seed(sessions)
        # A client that exists already, here a sync one.
        client = httpx.Client(base_url=PAYMENTS_URL)
        with observe.instrument_client(client, service="payments", templates=PAYMENTS_TEMPLATES) as ledger:
            yield {"sessions": sessions, "payments": payments, "ledger": ledger}


app = FastAPI(title="Shop", lifespan=lifespan)
observe = install(
    app,
    service_name="shop",
    environment="development",
    sample_ratio=1.0,  # samples every trace, for demonstration; the default is 0.1
    exclude_paths=("/healthz",),
    slow_query_threshold=0.1,
    span_processors=span_file("shop"),
    slos=[
        Availability("checkout", 99.9, routes=["POST /orders", "POST /orders/{order_id}/checkout"], sla=99),
        Latency("browsing", 95, within="300ms", routes=["GET /products", "GET /products/{product_id}"]),
    ],
)
engine = make_engine("shop")
observe.instrument_engine(engine, pool_name="shop")
app.state.events = events = OrderEvents()
observe.metrics.gauge("order_event_listeners", "Clients that listen for order events.").set_function(events.listeners)
app.add_exception_handler(ShopError, refuse)
app.include_router(products.router)
app.include_router(customers.router)
app.include_router(orders.router)
app.include_router(orders.live)
app.include_router(reports.router)
app.mount("/admin", admin)
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))


@app.get("/", include_in_schema=False)
async def home() -> RedirectResponse:
    """Redirect to the API documentation."""
    return RedirectResponse("/docs")


@app.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Respond once the database is open. Requests are in no signal, see `exclude_paths`."""
    return {"status": "ok"}
