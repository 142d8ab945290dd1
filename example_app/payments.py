"""The payments service, a separate process that continues the trace of the shop's `traceparent` header."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, status
from pydantic import BaseModel, Field

from example_app.database import Charge, PaymentTables, SessionDep, make_engine, open_database
from example_app.spans import span_file
from fastapi_observe import LogDep, MetricsDep, install

LIMIT_CENTS = 100_000
"""Larger amounts are declined."""

SLOW_CENTS = 13
"""Amounts that end in this number of cents take `SLOW_SECONDS`."""

SLOW_SECONDS = 0.4


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the database. The yielded mapping becomes `request.state` of every request."""
    async with open_database(engine, PaymentTables) as sessions:
        yield {"sessions": sessions}


engine = make_engine("payments", pool_logging_name="payments")
app = FastAPI(title="Payments", lifespan=lifespan)
observe = install(
    app,
    service_name="payments",
    environment="development",
    sample_ratio=1.0,
    exclude_paths=("/healthz",),
    engines=(engine,),
    span_processors=span_file("payments"),
)
declined = observe.metrics.counter("payments_declined_total", "Charges declined.", ("reason",))


class ChargeRequest(BaseModel):
    """An amount to charge for an order."""

    order_id: int
    amount_cents: int = Field(gt=0)
    currency: str = Field(pattern="^[A-Z]{3}$")


class ChargeView(BaseModel):
    """A charge that was accepted."""

    charge_id: int


class ChargeRecord(ChargeRequest, from_attributes=True):
    """An earlier charge request and whether it was accepted."""

    accepted: bool


@observe.operation("ask the card network")
async def ask_card_network(amount_cents: int) -> bool:
    """Return whether the card covers the amount. Each call is counted, timed and a span."""
    if amount_cents % 100 == SLOW_CENTS:
        await asyncio.sleep(SLOW_SECONDS)
    return amount_cents <= LIMIT_CENTS


@app.post("/charges")
async def charge(body: ChargeRequest, session: SessionDep, metrics: MetricsDep, log: LogDep) -> ChargeView:
    """Charge a card; 402 above the limit."""
    accepted = await ask_card_network(body.amount_cents)
    record = Charge(**body.model_dump(), accepted=accepted)
    session.add(record)
    await session.commit()
    metrics.histogram("charge_amount_cents", "Amounts requested.", buckets=(1e3, 1e4, 1e5)).observe(body.amount_cents)
    if not accepted:
        declined.labels(reason="limit").inc()
        log.warn("charge declined", order_id=body.order_id, amount_cents=body.amount_cents)  # noqa: G010 - no stdlib logger
        raise HTTPException(status.HTTP_402_PAYMENT_REQUIRED, "over the limit")
    log.info("card charged", order_id=body.order_id, amount_cents=body.amount_cents)
    return ChargeView(charge_id=record.id)


@app.get("/charges/{charge_id}")
async def show_charge(charge_id: int, session: SessionDep) -> ChargeRecord:
    """Show one charge."""
    record = await session.get(Charge, charge_id)
    if record is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such charge")
    return ChargeRecord.model_validate(record)


@app.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Respond once the database is open. Requests are in no signal, see `exclude_paths`."""
    return {"status": "ok"}
