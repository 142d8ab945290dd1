"""The confirmation mail: a background task, so it adds no latency and is still part of the trace."""

from __future__ import annotations

import asyncio
import os
import tempfile
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from fastapi_observe import get_observability

if TYPE_CHECKING:
    from fastapi_observe import ExternalDep


async def send_confirmation(external: ExternalDep, order_id: int, address: str) -> None:
    """Write the mail to the outbox, a directory used in place of a mail provider."""
    message = EmailMessage()
    message["To"] = address
    message["Subject"] = f"Your order {order_id} is paid"
    message.set_content("Thank you.")
    outbox = Path(os.environ.get("EXAMPLE_DIR", tempfile.gettempdir())) / "outbox"
    try:
        async with external.call("mail", "send_confirmation", order_id=order_id):
            await asyncio.to_thread(outbox.mkdir, exist_ok=True)
            await asyncio.to_thread((outbox / f"order-{order_id}.eml").write_bytes, bytes(message))
    except OSError as exc:
        # The order is paid, so the task does not fail, and its span would not show this error.
        get_observability().tracing.record_error(exc)
        return
    # Plain loguru on purpose: lines of existing code get the ids, too.
    logger.info("confirmation mail for order {} sent", order_id)
