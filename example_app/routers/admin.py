"""The back office: a separate app, mounted at /admin, that uses the observability of the shop."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request, status
from pydantic import BaseModel
from sqlalchemy import func, select

from example_app.database import Order, SessionDep
from fastapi_observe import HttpClientDep, ObservabilityDep

admin = FastAPI(title="Back office")


class Stats(BaseModel):
    """Numbers of the shop."""

    service: str
    orders: dict[str, int]


@admin.get("/stats")
async def show_stats(session: SessionDep, observe: ObservabilityDep) -> Stats:
    """Count orders by status."""
    orders = await session.execute(select(Order.status, func.count()).group_by(Order.status))
    return Stats(service=observe.settings.service_name, orders=dict(orders.tuples().all()))


@admin.get("/payments")
async def show_payments(request: Request, http: HttpClientDep) -> dict[str, int]:
    """Check the payments service. `HttpClientDep` calls any address and propagates the trace."""
    response = await http.get(request.state.payments.base_url.join("/healthz"))
    return {"status_code": response.status_code}


@admin.get("/charges/{charge_id}")
def show_charge(request: Request, charge_id: int) -> dict[str, Any]:
    """Show a charge. A sync endpoint with a sync client is part of the same trace, too."""
    response = request.state.ledger.get(f"/charges/{charge_id}")
    if not response.is_success:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such charge")
    charge: dict[str, Any] = response.json()
    return charge
