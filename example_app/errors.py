"""Errors that customers see, and their exception handler."""

from __future__ import annotations

from fastapi import Request, status
from fastapi.responses import JSONResponse

from fastapi_observe import get_observability


class ShopError(Exception):
    """An error whose message the customer may read."""

    status_code = status.HTTP_409_CONFLICT


class OutOfStockError(ShopError):
    """Fewer pieces are in stock than were ordered."""


class PaymentDeclinedError(ShopError):
    """The payments service declined the payment."""

    status_code = status.HTTP_402_PAYMENT_REQUIRED


class PaymentsUnavailableError(ShopError):
    """The payments service did not respond."""

    status_code = status.HTTP_502_BAD_GATEWAY


async def refuse(_request: Request, exc: Exception) -> JSONResponse:
    """Respond to a `ShopError`. The log line has the ids of the request that failed."""
    get_observability().log.warn("refused", reason=type(exc).__name__)
    return JSONResponse({"detail": str(exc)}, getattr(exc, "status_code", status.HTTP_409_CONFLICT))
