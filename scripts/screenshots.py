"""Take the pictures of the console in docs/images from the demo: `python scripts/screenshots.py [directory]`."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SETTLE = 12.0
"""Seconds of traffic before the picture is taken."""

TIMEOUT = 60.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str) -> None:
    """Wait until the demo answers."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def take(url: str, directory: Path) -> None:
    """Open a failed request in both schemes, and save what the page shows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 860})
            page.goto(url)
            page.click(".requests button:has(.bad)")
            page.wait_for_selector(".fall")
            page.screenshot(path=directory / f"console-{scheme}.png")
            page.close()
        browser.close()


def main() -> None:
    """Run the demo for as long as the pictures take."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "fastapi_observe", "demo", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as demo:  # noqa: S603 - our own command
        try:
            url = f"http://127.0.0.1:{port}/observe/"
            wait_for(url)
            time.sleep(SETTLE)
            take(url, directory)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(TIMEOUT)


if __name__ == "__main__":
    main()
