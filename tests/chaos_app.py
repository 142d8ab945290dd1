"""An app with a response of every kind, the same in every run; `OBSERVED` says whether it is observed."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PLANNED = "planned failure"
"""What the exception of `/fails` says; any other in the output of a server is a fault."""


app = FastAPI()


@app.get("/pid")
async def answer_pid() -> int:
    """Answer with the process that serves."""
    time.sleep(0.002)  # noqa: ASYNC251 - so that the next request finds another worker
    return os.getpid()


@app.api_route("/json/{number}", methods=["GET", "HEAD"])
async def answer_json(number: int) -> dict[str, Any]:
    """Answer with JSON; 422 where `number` is none."""
    return {"number": number, "text": "é" * 20}


@app.get("/thread/{number}")
def answer_in_thread(number: int) -> int:
    """Answer from a worker thread."""
    return number


@app.post("/body")
async def answer_body(sent: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was sent."""
    return sent


@app.get("/empty", status_code=204)
async def answer_nothing() -> None:
    """Answer without a body."""


@app.get("/cookies")
async def answer_cookies() -> Response:
    """Answer with one header twice."""
    response = Response("two", media_type="text/plain")
    response.set_cookie("first", "1")
    response.set_cookie("second", "2")
    return response


@app.get("/fails")
async def fail() -> None:
    """Raise."""
    raise RuntimeError(PLANNED)


@app.get("/stream")
async def stream() -> StreamingResponse:
    """Answer in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            await asyncio.sleep(0)
            yield b"%d" % number * 1000

    return StreamingResponse(pieces(), media_type="application/octet-stream")


@app.get("/file")
async def file() -> FileResponse:
    """Answer with this file."""
    return FileResponse(__file__)


@app.get("/redirect")
async def redirect() -> RedirectResponse:
    """Point elsewhere."""
    return RedirectResponse("/json/1")


@app.websocket("/websocket")
async def websocket(websocket: WebSocket) -> None:
    """Send one text back."""
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


if os.environ.get("OBSERVED") == "1":
    from fastapi_observe import install

    install(app)
