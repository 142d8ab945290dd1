"""Checkout: one trace through the shop, the payments service, the WebSocket and the confirmation mail."""
# ruff: noqa: PLR0913, PLR0917 - FastAPI hands in what a path operation names

from decimal import Decimal
from typing import Annotated

import httpx
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Request, status
from pydantic import BaseModel

from example_app.database import Order, SessionDep
from example_app.errors import PaymentDeclinedError, PaymentsUnavailableError
from example_app.identity import CustomerDep
from example_app.mail import send_confirmation
from fastapi_observe import ExternalDep, LogDep, MetricsDep, Observability, ObservabilityDep, TracingDep

router = APIRouter(prefix="/{order_id}")


def payments_client(request: Request) -> httpx.AsyncClient:
    """Return the client of the payments service."""
    client: httpx.AsyncClient = request.state.payments
    return client


PaymentsDep = Annotated[httpx.AsyncClient, Depends(payments_client)]


class Receipt(BaseModel):
    """A paid order."""

    order_id: int
    total_cents: int
    charge_id: int


@router.post("/checkout")
async def check_out(
    request: Request,
    order_id: int,
    customer: CustomerDep,
    session: SessionDep,
    payments: PaymentsDep,
    observe: ObservabilityDep,
    external: ExternalDep,
    tracing: TracingDep,
    metrics: MetricsDep,
    log: LogDep,
    tasks: BackgroundTasks,
) -> Receipt:
    """Pay an open order; 402 if the payments service declines it."""
    log = log.with_fields(order_id=order_id)
    order = await session.get(Order, order_id)
    if order is None or order.customer_id != customer.id:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such order")
    if order.status != "open":
        raise HTTPException(status.HTTP_409_CONFLICT, f"this order is {order.status}")

    charge_id = await charge_card(order, payments, observe)
    order.status = "declined" if charge_id is None else "paid"
    await session.commit()
    if charge_id is None:
        raise PaymentDeclinedError("the payment was declined")
    tracing.add_event("payment accepted", charge_id=charge_id)

    metrics.business.order_created()
    metrics.business.revenue(Decimal(order.total_cents) / 100, "EUR")
    request.app.state.events.publish(order_id, "paid")
    tasks.add_task(send_confirmation, external, order_id, customer.email)
    log.info("order paid", total_cents=order.total_cents)
    return Receipt(order_id=order_id, total_cents=order.total_cents, charge_id=charge_id)


async def charge_card(order: Order, payments: httpx.AsyncClient, observe: Observability) -> int | None:
    """Charge the card and return the id of the charge, or None if it is declined.

    A failed call is recorded in span, metrics and log without code here.
    """
    body = {"order_id": order.id, "amount_cents": order.total_cents, "currency": "EUR"}
    with observe.operation("charge card") as operation:
        operation.add_details(**body)
        try:
            response = await payments.post("/charges", json=body)
            if response.status_code == status.HTTP_402_PAYMENT_REQUIRED:
                return None
            response.raise_for_status()
        except httpx.HTTPError as exc:
            raise PaymentsUnavailableError("try again later") from exc
        return int(response.json()["charge_id"])
