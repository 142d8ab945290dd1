"""The command `demo`: a small shop with traffic, to try the development console."""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fastapi_observe.cli.output import EXIT_ERROR
from fastapi_observe.internal.networks import MAX_PORT

if TYPE_CHECKING:
    from fastapi_observe.cli.output import Commands

HOST: Final = "127.0.0.1"


def add_demo(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="run a small shop with traffic, to try the console",
        description="Run a small shop on this machine, with traffic: requests that are slow, repeat a query, block the "
        "event loop and fail. Nothing is exported. Needs the extra fastapi-observe[demo]. Ctrl-C ends it.",
        epilog="Exits with 2 if the port is in use, or if the extra is not installed.",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="PORT", help="port of the shop; 0: any free port (default: 8000)"
    )
    parser.set_defaults(run=run_demo)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"invalid port {text!r}; use a whole number from 0 to {MAX_PORT}")
    return int(text)


def run_demo(args: argparse.Namespace) -> int:
    """Run the shop until Ctrl-C."""
    try:
        import uvicorn  # noqa: PLC0415 - an extra, as FastAPI

        from fastapi_observe.demo.shop import make_app  # noqa: PLC0415
        from fastapi_observe.demo.traffic import Traffic  # noqa: PLC0415
    except ImportError as error:
        sys.stderr.write(f"{error}; install what the demo needs: pip install 'fastapi-observe[demo]'\n")
        return EXIT_ERROR
    try:
        listener = socket.create_server((HOST, args.port))
    except OSError as error:
        sys.stderr.write(f"cannot listen on port {args.port}: {error.strerror}; choose another one with --port\n")
        return EXIT_ERROR
    with listener:
        port = listener.getsockname()[1]
        sys.stdout.write(
            f"A shop with traffic runs on http://{HOST}:{port} until Ctrl-C.\n"
            f"See it in the browser:   http://{HOST}:{port}/observe/\n"
            "and in another terminal: python -m fastapi_observe show failed\n\n"
        )
        sys.stdout.flush()
        app = make_app()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        traffic = Traffic(port)
        traffic.start()
        try:
            with suppress(KeyboardInterrupt):  # uvicorn has shut down before it raises this
                server.run(sockets=[listener])
        finally:
            traffic.stop()
            app.state.observe.close()
    return 0
