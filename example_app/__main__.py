"""Start payments and shop, send a little traffic, show it in three signals, run until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from example_app.services import say, started
from example_app.tour import show_checkout, show_findings, show_where_to_look
from example_app.traffic import send_traffic

if TYPE_CHECKING:
    from collections.abc import Sequence


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--shop-port", type=int, default=8000, help="port of the shop; 0: a free one (default: 8000)")
    parser.add_argument("--payments-port", type=int, default=8001, help="port of payments, likewise (default: 8001)")
    parser.add_argument("--once", action="store_true", help="stop after the tour")
    return parser.parse_args(arguments)


async def run(chosen: argparse.Namespace, directory: Path) -> None:
    """Do all of it; both services end with this function, however it ends."""
    async with (
        started("payments", chosen.payments_port, directory) as payments,
        started("shop", chosen.shop_port, directory, PAYMENTS_URL=payments.url) as shop,
    ):
        await payments.ready()
        await shop.ready()
        told = await send_traffic(shop.url)
        await show_checkout(told, shop, payments, directory)
        await show_findings(told, shop, directory)
        if chosen.once:
            return
        show_where_to_look(told, shop, payments, directory)
        say("\nThe services' log lines from now on (Ctrl-C stops both):")
        shop.echo = payments.echo = True
        ended = {asyncio.create_task(service.process.wait()): service.name for service in (shop, payments)}
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        raise SystemExit(f"{ended[done.pop()]} ended by itself")


async def run_until_signal(chosen: argparse.Namespace, directory: Path) -> None:
    """Take Ctrl-C and SIGTERM as the polite end that they are."""
    work = asyncio.create_task(run(chosen, directory))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: work.cancelling() or work.cancel())
    with suppress(asyncio.CancelledError):
        await work
    if work.cancelled():
        say("stopped")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="example-shop-") as made:
        asyncio.run(run_until_signal(options(), Path(made)))
