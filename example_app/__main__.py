"""Start the payments service and the shop, send some traffic, show it in three signals, and run until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from example_app.services import run_service, say
from example_app.tour import show_checkout, show_findings, show_where_to_look
from example_app.traffic import send_traffic

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument(
        "--shop-port", type=int, default=8000, help="port of the shop; 0 chooses a free one (default: 8000)"
    )
    parser.add_argument(
        "--payments-port",
        type=int,
        default=8001,
        help="port of the payments service; 0 chooses a free one (default: 8001)",
    )
    parser.add_argument("--once", action="store_true", help="stop after the tour")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace, directory: Path) -> None:
    """Run both services and the tour. The services end with this function, however it ends."""
    async with (
        run_service("payments", options.payments_port, directory) as payments,
        run_service("shop", options.shop_port, directory, PAYMENTS_URL=payments.url) as shop,
    ):
        await payments.ready()
        await shop.ready()
        traffic = await send_traffic(shop.url)
        await show_checkout(traffic, shop, payments, directory)
        await show_findings(traffic, shop, directory)
        if options.once:
            return
        show_where_to_look(traffic, shop, payments, directory)
        say("\nThe services' log lines from now on (Ctrl-C stops both):")
        shop.echo = payments.echo = True
        ended = {asyncio.create_task(service.process.wait()): service.name for service in (shop, payments)}
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        raise SystemExit(f"{ended[done.pop()]} ended unexpectedly")


async def run_until_signal(options: argparse.Namespace, directory: Path) -> None:
    """Run until Ctrl-C or SIGTERM, then stop both services."""
    task = asyncio.create_task(run(options, directory))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    with suppress(asyncio.CancelledError):
        await task
    if task.cancelled():
        say("stopped")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="example-shop-") as name:
        asyncio.run(run_until_signal(parse_options(), Path(name)))
