"""Orders: create, list, show, export, and watch over a WebSocket."""
# ruff: noqa: PLR0913, PLR0917 - FastAPI hands in what a path operation names

import json
from collections.abc import AsyncIterator
from contextlib import nullcontext

import anyio
from fastapi import APIRouter, HTTPException, Request, WebSocket, WebSocketDisconnect, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select, update

from example_app.database import Order, OrderLine, Product, SessionDep
from example_app.errors import OutOfStockError
from example_app.identity import CustomerDep
from example_app.routers import checkout
from fastapi_observe import LogDep, MetricsDep, SpanDep, TracingDep

router = APIRouter(prefix="/orders", tags=["orders"])
live = APIRouter(prefix="/ws")


class Line(BaseModel):
    """A quantity of one product."""

    product_id: int
    quantity: int = Field(ge=1, le=100)


class Cart(BaseModel):
    """The products of an order."""

    lines: list[Line] = Field(min_length=1, max_length=50)


class OrderView(BaseModel, from_attributes=True):
    """An order, as shown to its customer."""

    id: int
    status: str
    total_cents: int


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_order(
    cart: Cart,
    customer: CustomerDep,
    session: SessionDep,
    tracing: TracingDep,
    metrics: MetricsDep,
    log: LogDep,
) -> OrderView:
    """Reserve the products and price the order; 409 if one is out of stock."""
    for line in cart.lines:
        reserve = update(Product).where(Product.id == line.product_id, Product.stock >= line.quantity)
        reserve = reserve.values(stock=Product.stock - line.quantity).returning(Product.id)
        if await session.scalar(reserve) is None:
            raise OutOfStockError(f"product {line.product_id} is not in stock")

    async with tracing.span("price order", lines=len(cart.lines)) as span:
        statement = select(Product.id, Product.price_cents).where(Product.id.in_({x.product_id for x in cart.lines}))
        prices = dict((await session.execute(statement)).tuples().all())
        total_cents = sum(prices[line.product_id] * line.quantity for line in cart.lines)
        span.set_attribute("shop.total_cents", total_cents)

    order = Order(customer_id=customer.id, status="open", total_cents=total_cents)
    session.add(order)
    await session.flush()
    session.add_all(
        OrderLine(order_id=order.id, price_cents=prices[line.product_id], **line.model_dump()) for line in cart.lines
    )
    await session.commit()
    metrics.histogram("cart_size", "Pieces in one order.").observe(sum(line.quantity for line in cart.lines))
    log.info("order created", order_id=order.id, total_cents=total_cents)
    return OrderView.model_validate(order)


@router.get("")
async def list_orders(customer: CustomerDep, session: SessionDep) -> list[OrderView]:
    """List the caller's own orders."""
    orders = await session.scalars(select(Order).where(Order.customer_id == customer.id).order_by(Order.id))
    return [OrderView.model_validate(order) for order in orders]


@router.get("/export")
async def export_orders(request: Request) -> StreamingResponse:
    """Stream all orders, without names, as JSON lines. The time to first byte of a stream has its own metric."""

    async def lines() -> AsyncIterator[str]:
        # FastAPI closes the injected session when the endpoint returns, before the stream starts.
        async with request.state.sessions() as session:
            async for order in await session.stream_scalars(select(Order).order_by(Order.id)):
                yield json.dumps(OrderView.model_validate(order).model_dump()) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/{order_id}")
async def get_order(order_id: int, customer: CustomerDep, session: SessionDep, span: SpanDep) -> OrderView:
    """Show one of the caller's orders. Its id becomes a span attribute, never a label."""
    span.set_attribute("shop.order_id", order_id)
    order = await session.scalar(select(Order).where(Order.id == order_id, Order.customer_id == customer.id))
    if order is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such order")
    return OrderView.model_validate(order)


router.include_router(checkout.router)


@live.websocket("/orders")
async def watch_orders(websocket: WebSocket, tracing: TracingDep, log: LogDep) -> None:
    """Push each order event, in the trace of the request that caused it."""
    await websocket.accept()
    async with anyio.create_task_group() as group:
        # Only receiving reveals that the client has left or that the server shuts down.
        group.start_soon(until_closed, websocket, group.cancel_scope)
        with websocket.app.state.events.listen() as queue:
            log.info("order watcher connected")
            while True:
                event = await queue.get()
                with tracing.attach(event.trace) if event.trace else nullcontext(), tracing.span("push order event"):
                    await websocket.send_json({"order_id": event.order_id, "status": event.status})


async def until_closed(websocket: WebSocket, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the connection ends."""
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        scope.cancel()
