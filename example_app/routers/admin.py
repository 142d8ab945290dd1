"""The back office: an app of its own, mounted at /admin, that uses what the shop installed."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request, status
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
    orders = await session.execute(select(Order.status, func.count()).group_by(Order.status))
    return Stats(service=observe.settings.service_name, orders=dict(orders.tuples().all()))


@admin.get("/payments")
async def show_payments(request: Request, http: HttpClientDep) -> dict[str, int]:
    """Ask the payments service how it is: `HttpClientDep` calls any address, and carries the trace there."""
    answer = await http.get(request.state.payments.base_url.join("/healthz"))
    return {"status_code": answer.status_code}


@admin.get("/charges/{charge_id}")
def show_charge(request: Request, charge_id: int) -> dict[str, Any]:
    """Show what payments wrote down of a charge; a sync endpoint with a sync client, in the same trace all the same."""
    answer = request.state.ledger.get(f"/charges/{charge_id}")
    if not answer.is_success:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such charge")
    found: dict[str, Any] = answer.json()
    return found
