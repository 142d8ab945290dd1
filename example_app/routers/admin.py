"""The back office: an app of its own, mounted at /admin, that uses what the shop installed."""

from fastapi import FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import func, select

from example_app.database import Order, SessionDep
from fastapi_observe import HttpClientDep, ObservabilityDep

admin = FastAPI(title="Back office")


class Stats(BaseModel):
    """Where the shop stands."""

    service: str
    orders: dict[str, int]


@admin.get("/stats")
async def show_stats(session: SessionDep, observe: ObservabilityDep) -> Stats:
    """Count orders by status."""
    statement = select(Order.status, func.count()).group_by(Order.status)
    async with observe.db.query("SELECT", table="orders", statement=str(statement)):
        orders = dict((await session.execute(statement)).tuples().all())
    return Stats(service=observe.settings.service_name, orders=orders)


@admin.get("/payments")
async def show_payments(request: Request, http: HttpClientDep) -> dict[str, int]:
    """Ask the payments service how it is: `HttpClientDep` calls any address, and carries the trace there."""
    answer = await http.get(request.state.payments.base_url.join("/healthz"))
    return {"status_code": answer.status_code}
