"""Reports with problems on purpose: find them in the traces, metrics and logs."""

import time

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import func, select, text

from example_app.database import Customer, Order, SessionDep
from fastapi_observe import DatabaseDep, TracingDep

router = APIRouter(prefix="/reports", tags=["reports"])


COUNT_SLOWLY = text(
    "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 2000000)"
    " SELECT count(*) FROM numbers"
)


class CustomerReport(BaseModel):
    """What one customer ordered."""

    customer_id: int
    orders: int


@router.get("/customers")
async def report_customers(session: SessionDep, db: DatabaseDep) -> list[CustomerReport]:
    """Count each customer's orders, all in one query."""
    counted = select(Order.customer_id, func.count().label("orders")).group_by(Order.customer_id).cte("counted")
    statement = select(Customer.id, func.coalesce(counted.c.orders, 0)).order_by(Customer.id)
    statement = statement.outerjoin(counted, counted.c.customer_id == Customer.id)
    # What the engine sends needs no db.query. This gives it a name of our own: a report is more than its first table.
    async with db.query("REPORT", table="orders") as query:
        rows = (await session.execute(statement)).tuples().all()
        query.set_row_count(len(rows))
    return [CustomerReport(customer_id=customer_id, orders=orders) for customer_id, orders in rows]


@router.get("/customers-slow")
async def report_customers_slowly(session: SessionDep) -> list[CustomerReport]:
    """Count each customer's orders.

    Wrong on purpose, an N+1: one query for each customer where one would do, see above. Once there are more than ten,
    a line of level `warn` says which statement was repeated, the server span has it as an attribute, and
    db_repeated_queries_total counts the endpoint.
    """
    report = []
    for customer_id in (await session.scalars(select(Customer.id).order_by(Customer.id))).all():
        orders = select(func.count()).select_from(Order).where(Order.customer_id == customer_id)
        report.append(CustomerReport(customer_id=customer_id, orders=await session.scalar(orders) or 0))
    return report


@router.get("/slow-query")
async def report_slow_query(session: SessionDep) -> dict[str, int]:
    """Have the database count to two million: slower than `slow_query_threshold`, so a line reports it."""
    return {"numbers": await session.scalar(COUNT_SLOWLY) or 0}


@router.get("/slow")
def report_slow(tracing: TracingDep) -> dict[str, str]:
    """Take 0.3 seconds; a sync endpoint, so it holds a thread and not the event loop."""
    with tracing.span("crunch numbers"):
        time.sleep(0.3)
    return {"report": "slow"}


@router.get("/broken")
async def report_broken(session: SessionDep) -> dict[str, float]:
    """Fail: divide by the number of orders that were never written."""
    lost = await session.scalar(select(func.count()).select_from(Order).where(Order.status == "lost")) or 0
    return {"average": 1 / lost}
