"""Reports with problems on purpose: find them in the traces, metrics and logs."""

import time

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import func, select

from example_app.database import Customer, Order, SessionDep
from fastapi_observe import DatabaseDep, TracingDep

router = APIRouter(prefix="/reports", tags=["reports"])


class CustomerReport(BaseModel):
    """What one customer ordered."""

    customer_id: int
    orders: int


@router.get("/customers")
async def report_customers(session: SessionDep, db: DatabaseDep) -> list[CustomerReport]:
    """Count each customer's orders.

    Wrong on purpose, an N+1: one query for each customer where a single GROUP BY would do. The trace shows a ladder
    of equal spans, db_queries_total grows by the number of customers with each request.
    """
    customers = select(Customer.id).order_by(Customer.id)
    async with db.query("SELECT", table="customers", statement=str(customers)):
        ids = (await session.scalars(customers)).all()
    report = []
    for customer_id in ids:
        orders = select(func.count()).select_from(Order).where(Order.customer_id == customer_id)
        async with db.query("SELECT", table="orders", statement=str(orders)):
            report.append(CustomerReport(customer_id=customer_id, orders=await session.scalar(orders) or 0))
    return report


@router.get("/slow")
def report_slow(tracing: TracingDep) -> dict[str, str]:
    """Take 0.3 seconds; a sync endpoint, so it holds a thread and not the event loop."""
    with tracing.span("crunch numbers"):
        time.sleep(0.3)
    return {"report": "slow"}


@router.get("/broken")
async def report_broken(session: SessionDep, db: DatabaseDep) -> dict[str, float]:
    """Fail: divide by the number of orders that were never written."""
    statement = select(func.count()).select_from(Order).where(Order.status == "lost")
    async with db.query("SELECT", table="orders", statement=str(statement)):
        lost = await session.scalar(statement) or 0
    return {"average": 1 / lost}
