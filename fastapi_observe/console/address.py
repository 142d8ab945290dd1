"""The address of the running server: from its command line, or from a request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

_SERVERS: Final = frozenset({"uvicorn", "uvicorn.exe", "fastapi", "fastapi.exe"})
_ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - nothing is bound


def address_from_command_line(arguments: Sequence[str] | None = None) -> str | None:
    """Return the URL of a server started by `uvicorn` or `fastapi`; None if this is another command.

    `arguments` are those of this process unless given. 127.0.0.1:8000 is the default of both servers.
    """
    name, *options = arguments if arguments is not None else sys.argv or [""]
    if _SERVERS.isdisjoint(Path(name).parts[-2:]):
        return None
    values = {"--host": "127.0.0.1", "--port": "8000"}
    for at, option in enumerate(options):
        key, separator, value = option.partition("=")
        if key in values:
            values[key] = value if separator else next(iter(options[at + 1 : at + 2]), "")
    if not values["--port"].isdecimal() or values["--port"] == "0":
        return None
    return _url(values["--host"], int(values["--port"]))


def address_from_request(scope: Scope) -> str | None:
    """Return the URL of the server that received a request; None if it listens on a UNIX socket."""
    server = scope.get("server")
    return _url(server[0], server[1]) if server and server[1] else None


def _url(host: str, port: int) -> str:
    host = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
