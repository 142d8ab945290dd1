"""Checkout: one trace through the shop, the payments service, the WebSocket and the confirmation mail."""
# ruff: noqa: PLR0913, PLR0917 - FastAPI hands in what a path operation names

from decimal import Decimal
from typing import Annotated

import httpx
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request, status
from pydantic import BaseModel
from sqlalchemy import update

from example_app.database import Order, SessionDep
from example_app.errors import PaymentDeclinedError, PaymentsUnavailableError
from example_app.identity import CustomerDep
from example_app.mail import send_confirmation
from fastapi_observe import DatabaseDep, ExternalDep, LogDep, MetricsDep, TracingDep

router = APIRouter(prefix="/{order_id}")


def payments_client(request: Request) -> httpx.AsyncClient:
    """Return the client that knows the payments service."""
    client: httpx.AsyncClient = request.state.payments
    return client


PaymentsDep = Annotated[httpx.AsyncClient, Depends(payments_client)]


class Receipt(BaseModel):
    """What was paid."""

    order_id: int
    total_cents: int


@router.post("/checkout")
async def check_out(
    request: Request,
    order_id: int,
    customer: CustomerDep,
    session: SessionDep,
    db: DatabaseDep,
    payments: PaymentsDep,
    external: ExternalDep,
    tracing: TracingDep,
    metrics: MetricsDep,
    log: LogDep,
    tasks: BackgroundTasks,
) -> Receipt:
    """Pay an open order; 402 if the payments service declines it."""
    log = log.with_fields(order_id=order_id)
    async with db.query("SELECT", table="orders", statement="SELECT ... FROM orders WHERE id = ?"):
        order = await session.get(Order, order_id)
    if order is None or order.customer_id != customer.id:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such order")
    if order.status != "open":
        raise HTTPException(status.HTTP_409_CONFLICT, f"this order is {order.status}")

    body = {"order_id": order_id, "amount_cents": order.total_cents, "currency": "EUR"}
    try:
        answer = await payments.post("/charge", json=body)
    except httpx.HTTPError as exc:
        # The request goes on, so the span would never hear of it.
        tracing.record_error(exc)
        log.error("payments gave no answer", exception=exc)  # noqa: TRY400 - no stdlib logger
        raise PaymentsUnavailableError("try again later") from exc
    if answer.status_code == status.HTTP_402_PAYMENT_REQUIRED:
        await settle(order, "declined", session, db)
        raise PaymentDeclinedError("the payment was declined")
    answer.raise_for_status()
    tracing.event("payment accepted", order_id=order_id)

    await settle(order, "paid", session, db)
    metrics.business.order_created()
    metrics.business.revenue(Decimal(order.total_cents) / 100, "EUR")
    request.app.state.events.publish(order_id, "paid")
    tasks.add_task(send_confirmation, external, order_id, customer.email)
    log.info("order paid", total_cents=order.total_cents)
    return Receipt(order_id=order_id, total_cents=order.total_cents)


async def settle(order: Order, outcome: str, session: SessionDep, db: DatabaseDep) -> None:
    """Write down how the payment went."""
    statement = update(Order).where(Order.id == order.id).values(status=outcome)
    async with db.query("UPDATE", table="orders", statement=str(statement)):
        await session.execute(statement)
        await session.commit()
