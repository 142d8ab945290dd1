"""What the shop refuses, and the handler that answers it."""

from __future__ import annotations

from fastapi import Request, status
from fastapi.responses import JSONResponse

from fastapi_observe import get_observability


class ShopError(Exception):
    """A refusal that the customer may read."""

    status_code = status.HTTP_409_CONFLICT


class OutOfStockError(ShopError):
    """Less is left than was ordered."""


class PaymentDeclinedError(ShopError):
    """The payments service said no."""

    status_code = status.HTTP_402_PAYMENT_REQUIRED


class PaymentsUnavailableError(ShopError):
    """The payments service gave no answer."""

    status_code = status.HTTP_502_BAD_GATEWAY


async def refuse(_request: Request, exc: Exception) -> JSONResponse:
    """Answer a `ShopError`; its line carries the ids of the request that failed."""
    get_observability().log.warn("refused", reason=type(exc).__name__)
    return JSONResponse({"detail": str(exc)}, getattr(exc, "status_code", status.HTTP_409_CONFLICT))
