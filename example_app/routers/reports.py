"""Reports with problems on purpose, to be found in traces, metrics and logs."""

import time
from concurrent.futures import ThreadPoolExecutor

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
    """The number of orders of a customer."""

    customer_id: int
    orders: int


@router.get("/customers")
async def report_customers(session: SessionDep, db: DatabaseDep) -> list[CustomerReport]:
    """Count the orders of each customer in one query."""
    counted = select(Order.customer_id, func.count().label("orders")).group_by(Order.customer_id).cte("counted")
    statement = select(Customer.id, func.coalesce(counted.c.orders, 0)).order_by(Customer.id)
    statement = statement.outerjoin(counted, counted.c.customer_id == Customer.id)
    # The engine is instrumented, so db.query is not needed. It replaces the name taken from the first table.
    async with db.query("REPORT", table="orders") as query:
        rows = (await session.execute(statement)).tuples().all()
        query.set_row_count(len(rows))
    return [CustomerReport(customer_id=customer_id, orders=orders) for customer_id, orders in rows]


@router.get("/customers-slow")
async def report_customers_slowly(session: SessionDep) -> list[CustomerReport]:
    """Count the orders of each customer.

    This is an N+1 problem on purpose: one query for each customer instead of one for all. With more than ten
    customers a warning names the repeated statement, the server span has it as an attribute, and
    db_repeated_queries_total counts the endpoint.
    """
    report = []
    for customer_id in (await session.scalars(select(Customer.id).order_by(Customer.id))).all():
        orders = select(func.count()).select_from(Order).where(Order.customer_id == customer_id)
        report.append(CustomerReport(customer_id=customer_id, orders=await session.scalar(orders) or 0))
    return report


@router.get("/slow-query")
async def report_slow_query(session: SessionDep) -> dict[str, int]:
    """Let the database count to two million, which is slower than `slow_query_threshold` and is logged."""
    return {"numbers": await session.scalar(COUNT_SLOWLY) or 0}


@router.get("/slow")
def report_slow(tracing: TracingDep) -> dict[str, str]:
    """Take 0.3 seconds in two threads of its own, which keep the trace: `install` has instrumented threads."""

    def crunch(part: str) -> None:
        with tracing.span("crunch numbers", part=part):
            time.sleep(0.3)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(crunch, ("orders", "customers")))
    return {"report": "slow"}


@router.get("/broken")
async def report_broken(session: SessionDep) -> dict[str, float]:
    """Fail with a division by zero: there are no lost orders."""
    lost = await session.scalar(select(func.count()).select_from(Order).where(Order.status == "lost")) or 0
    return {"average": 1 / lost}
